"""The learned rule: gradient history -> features -> metanet -> a step along strong base directions.

Shapes: P scalars of one network, B parameters (tensors), K decays, R raw outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from lopt.config import from_mapping, to_mapping
from lopt.features import log_sign, per_scalar, per_tensor
from lopt.graph import ParameterGraph
from lopt.graph.made_once import made_once
from lopt.graph.tensor_classes import (
    classes,
    hidden_matrices,
    relative_rates,
    scales_of,
    usual_and_least,
)
from lopt.metanets import METANETS
from lopt.metanets.base import SPARING
from lopt.metanets.layers import drawn_as_torch
from lopt.metanets.pieces import Piece, Wave, cut, in_waves, uncut
from lopt.numerics import moments
from lopt.numerics.schedules import annealing, decay_share, settling
from lopt.numerics.segments import LONG, segment_expand, segment_mean
from lopt.rules import gathered, parted, ranges, whitening
from lopt.rules.base import BoundRule, Decision, Rule, State, Tensors, working_dtype
from lopt.rules.config import LearnedRuleConfig
from lopt.rules.constants import SPEED, Constants, Moved
from lopt.rules.ends import Ends, Limits, ends_of
from lopt.rules.forms import FORMS, Form
from lopt.rules.observing import Given, Statistics, View
from lopt.rules.parted import Parted
from lopt.rules.shards import ALONE, OneProcess, Shards, in_whole_rows
from lopt.rules.timing import Clock, Decays, Timed, Timetable
from lopt.rules.whitening import Around, followed, started

LONGEST_PACE = 100.0
"""Steps become at most so many times as long as without a pace, or as short."""


class Words(NamedTuple):
    """What a metanet has said, to be asked for piece by piece."""

    of: Callable[[Piece], Tensor]
    """Raw outputs (R, n), or by tensor what a form makes of them (Q, b)."""
    checked: list[Tensor]
    """What has to be finite for raw outputs to be."""
    by_tensor: bool
    factored: Tensor | None = None
    """(P,) square root of the factored second moment, where anything asks for it."""
    memory: Tensor | None = None
    """(M, P) what it remembers next."""


class LearnedRule(Rule):
    """delta = -a(t / T) rate (exp(s(raw_0)) sum_k (w_k + raw_k) d_k + b(T) p), bounded for each tensor.

    The d_k are base directions with weights w_k, raw (R, P) the metanet's outputs, s keeps within +-2, a is half a
    cosine where the horizon T is known, else 1, and b(T) is the decay of the parameters p, by default 0. With the
    metanet's heads at zero this is the optimizer of the weighted directions, by default Adam, with cosine decay if it
    is told the horizon. Other forms are in `lopt.rules.forms`.
    """

    log_rate: Tensor
    """() logarithm of the base rate, in units of `SPEED`."""
    state_dtype: torch.dtype | None = None
    """What momenta and second moments are kept in from step to step; None: what is computed in."""

    def __init__(self, config: LearnedRuleConfig) -> None:
        super().__init__()
        self.config = config
        kinds, raw = len(config.decays), config.inputs == "log_sign"
        self.metanet = METANETS.make(
            config.metanet,
            features=log_sign.count(kinds) if raw else per_scalar.count(kinds, config.factored),
            context=0 if raw else per_tensor.count(kinds),
            outputs=FORMS[config.update_form].outputs(len(config.directions)),
        )
        if config.initial == "torch":
            drawn_as_torch(self.metanet)
        log_rate = torch.tensor(config.rate).log() / SPEED
        if config.learned_rate:
            self.log_rate = nn.Parameter(log_rate)
        else:  # of the same name, so that files look alike
            self.register_buffer("log_rate", log_rate)
        learns = FORMS[config.update_form].learns_decay
        self.decay_shift = nn.Parameter(torch.zeros(())) if learns else None
        self.constants = Constants(config.constants)
        self._timetable = Timetable()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_timetable": Timetable()}  # it holds graphs

    def on(self, graph: ParameterGraph, meta_parameters: Tensors | None = None) -> BoundRule:
        bound = super().on(graph, meta_parameters)
        # Now, because `torch.compile` can use what is derived from a graph, but not trace how.
        _ = graph.shapes, graph.sizes, graph.numel
        _static(graph)
        hidden_matrices(graph)
        classes(graph)
        usual_and_least(graph)
        uncut(graph)
        if self.config.whitening:
            whitening.prepare(graph, self.config.whitening)
        self.metanet.prepare(graph)
        return bound

    def init(
        self, graph: ParameterGraph, params: Tensors, total_steps: Tensor | float | None = None
    ) -> State:
        like = next(iter(params.values()))
        shapes = {name: params[name].shape for name in graph.parameters}
        sizes = [shape.numel() for shape in shapes.values()]
        # Of zeros_like, as torch's optimizers: classes of tensors answer it with plain ones.
        zeros = torch.zeros_like(like).new_zeros(sum(sizes), dtype=working_dtype(*params.values()))
        counter = zeros.new_zeros(())
        paced = {"pace": counter + 1} if self.config.pace else {}
        total = counter + (0 if total_steps is None else total_steps)
        rows = {"momenta": len(self.config.decays), "memory": self.metanet.memory}
        # Views of flat tensors, as after every step: one memory layout, so that steps are compiled once.
        flat = {key: torch.stack([zeros] * count) for key, count in rows.items() if count} | {"second": zeros}
        if self.state_dtype:
            flat |= {key: flat[key].to(self.state_dtype) for key in ("momenta", "second")}
        parts = {key: value.split(sizes, -1) for key, value in flat.items()}
        settings = self.config.whitening
        roots = started(graph, settings, zeros) if settings else {}
        return {
            name: {
                "step": counter.clone(),
                "total_steps": total.clone(),
                **{key: value.clone() for key, value in paced.items()},
                **roots.get(name, {}),
                **{key: part[i].reshape((*part[i].shape[:-1], *shape)) for key, part in parts.items()},
            }
            for i, (name, shape) in enumerate(shapes.items())
        }

    def forward(
        self, graph: ParameterGraph, grads: Tensors, state: State, params: Tensors
    ) -> tuple[Tensors, State]:
        return self._whole(self._timed, graph, grads, state, params)

    def decide(
        self,
        graph: ParameterGraph,
        grads: Tensors,
        state: State,
        params: Tensors,
        shards: Shards | None = None,
    ) -> Decision:
        if shards is not None:
            return self._decision(self._at, graph, grads, state, params, shards.waves, shards)
        # All at once where that is faster: a metanet then looks at every scalar once. Kernels are of pieces.
        at_once = self.metanet.sees_scalars and graph.numel < SPARING and not self.fused
        # Compiled, every piece would be code of its own.
        if torch.compiler.is_compiling() or at_once or not self._comes_in_pieces:
            whole = self._whole(self._at, graph, grads, state, params)
            return Decision(list(whole[0].values()), lambda gate: iter([whole]))
        waves = _waves(graph)
        if self.fused:
            return self._decision(self._at, graph, grads, state, params, waves)
        # Without a version of each tensor and of what it is a view of, calls take a tenth less.
        with torch.inference_mode():
            return self._decision(
                self._at, graph, grads, state, params, waves, unwatched=torch.inference_mode
            )

    def takes_shards(self, graph: ParameterGraph) -> bool:
        return self._comes_in_pieces and in_whole_rows(graph)

    @property
    def _form(self) -> Form:
        return FORMS[self.config.update_form]

    @property
    def _comes_in_pieces(self) -> bool:
        """Whether all but orthogonalisation at last goes scalar by scalar, given some statistics of each tensor."""
        sees = self.metanet.sees_scalars
        return not (
            self.metanet.memory
            or (sees and (self.config.factored or not self.metanet.in_pieces))
            or self.config.inputs == "log_sign"
            or {"factored", "orthogonal", "grafted"} & set(self.config.directions)
        )

    def _whole(
        self,
        timed: Callable[[ParameterGraph, Clock], Timed],
        graph: ParameterGraph,
        grads: Tensors,
        state: State,
        params: Tensors,
    ) -> tuple[Tensors, State]:
        """The deltas and next state of all at once."""
        decision = self._decision(timed, graph, grads, state, params, uncut(graph))
        ((deltas, next_state),) = decision.parts(None)
        return deltas, next_state

    def _decision(
        self,
        timing: Callable[[ParameterGraph, Clock], Timed],
        graph: ParameterGraph,
        grads: Tensors,
        state: State,
        params: Tensors,
        waves: list[Wave],
        held: OneProcess = ALONE,
        unwatched: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> Decision:
        """One pass over all pieces looks at them, and another one, wave by wave and `unwatched`, makes their step.

        That of a whole graph, in one piece, is a function; else the second pass writes the next state in place, and
        values may be looked at.
        """
        given = Given.of(graph, grads, state, params, self.state_dtype)
        pieces = [piece for wave in waves for bundle in wave.bundles for piece in bundle.pieces]
        clock = Clock.of(graph, state, given.dtype)
        timed = timing(graph, clock)
        # Features hold what noise is the mean square of: where all are at hand, it need not be made once more.
        with_noise = not (self.metanet.sees_scalars and pieces[0].all)
        settings = self.config.whitening
        around: Sequence[Around | None] = ()
        if settings:
            host = not pieces[0].all
            within = followed(graph, settings, grads, state, clock.steps, timed.whitening, host, held)
            state, around = within.onto(state), within.around
        paced = self.config.pace > 0
        view = View(graph, given, timed.decays, pieces, with_noise, paced, held, self.fused, around)
        words = self._words(view, timed, state)
        pace = self._pace(view, timed, state)

        def parts(gate: Tensor | None) -> Iterator[tuple[Tensors, State]]:
            decay, factor = self._decay(view, timed), self._factor(view, timed)
            if pace is not None:
                factor = factor * pace
            bound = self.config.max_step * view.stats.param.clamp(min=0.1)
            limits = Limits(factor, bound, decay)
            now = {"step": clock.steps.unbind(), **({} if pace is None else {"pace": pace.unbind()})}
            for wave in waves:
                with unwatched():
                    deltas = self._deltas(view, words, wave, limits, gate)
                    named = self._named(view, wave, deltas, now, state, words.memory)
                yield named
                del deltas, named

        return Decision([view.means, *words.checked], parts)

    def _deltas(
        self, view: View, words: Words, wave: Wave, limits: Limits, gate: Tensor | None
    ) -> list[Tensor]:
        """(N,) of a wave's tensors; if the graph is not one piece, their next state is written."""
        if not view.whole:
            ends = ends_of(wave, self._form.orthogonal, view.given.dtype)
            make = self._of_ranges if wave.in_ranges else self._of_gathered
            return make(view, words, wave, ends, limits, gate)
        (piece,), (factor, bound, decay) = view.pieces, limits
        step = self._step(view, words)
        if decay is not None:
            step = step - piece.spread(decay) * view.params(piece)
        scale = torch.minimum(piece.of(factor), piece.of(bound) / view.rms(piece, step))
        scale = segment_expand(scale, piece.sizes, piece.index(scale.device))
        return [*(step * scale).split(piece.sizes)]

    def _words(self, view: View, timed: Timed, state: State) -> Words:
        """What the metanet has to say."""
        graph, dtype, like = view.graph, view.given.dtype, self.log_rate.dtype
        sees, piece = self.metanet.sees_scalars, view.pieces[0]
        features = factored = memory = None
        if view.whole and ((sees and self.config.factored) or "factored" in self.config.directions):
            root = view.look(piece).moments.root
            factored = moments.factored_root(root * root, graph.shapes)
        noise = view.noise
        if self.config.inputs == "log_sign":
            features = view.raw_features(piece)
        elif sees and view.whole:
            features = view.features(piece, factored if self.config.factored else None)
            ratios = features[: len(self.config.decays) + 1]
            noise = segment_mean(ratios * ratios, graph.sizes)
        context = self._context(view, timed, noise).to(like)
        if not sees and not (view.whole and graph.numel < LONG):
            spoken = self.metanet.of_tensors(context).to(dtype)
            said = torch.stack(self._form.said(spoken, self._log_rate().to(dtype), self.config.directions))
            columns: list[Tensor] = []

            def said_of(piece: Piece) -> Tensor:
                if not piece.is_range:
                    return piece.of(said)
                columns.extend([] if columns else said.T.contiguous()[..., None].unbind())
                return columns[piece.owners[0]]

            return Words(said_of, [spoken], True, factored)
        if view.whole:
            given = view.look(piece).momenta[:0] if features is None else features
            if self.metanet.memory:
                memory = graph.flatten({n: state[n]["memory"] for n in graph.parameters}).to(like)
            raw, memory = self.metanet(graph, given.to(like), context, memory)
            raw, memory = raw.to(dtype), None if memory is None else memory.to(dtype)
            return Words(lambda _: raw, [raw], False, factored, memory)

        def features_of(piece: Piece) -> Tensor:
            return view.features(piece).to(like)

        heard = self.metanet.listen(graph, view.pieces, features_of, context, view.held.summed)

        def raw_of(piece: Piece) -> Tensor:
            return heard.raw(piece).to(dtype).contiguous()

        return Words(raw_of, heard.checked, False)

    def _context(self, view: View, timed: Timed, noise: Tensor) -> Tensor:
        """(C, B)."""
        stats = view.stats
        if self.config.inputs == "log_sign":
            return stats.param.new_zeros(0, len(stats.param))
        return torch.cat(
            [
                timed.features,
                per_tensor.noise_features(noise, stats.param, stats.grad, stats.agreement),
                _static(view.graph).to(stats.param),
            ]
        )

    def _of_ranges(
        self, view: View, words: Words, wave: Wave, ends: Ends, limits: Limits, gate: Tensor | None
    ) -> list[Tensor]:
        """Those of tensors in ranges."""
        return parted.finished(self._drafts(view, words, wave, ends.hidden, gate), ends, view, limits)

    def _of_gathered(
        self, view: View, words: Words, wave: Wave, ends: Ends, limits: Limits, gate: Tensor | None
    ) -> list[Tensor]:
        """Those of tensors that are gathered in one piece."""
        ((piece,),) = (bundle.pieces for bundle in wave.bundles)
        history = view.history(
            piece, [ends.reads.get(i) for i in range(len(view.graph.sizes))], words.by_tensor
        )
        length, *weights = self._said(view, words, piece)
        aim = self._form.aim(history, self.config.directions, weights)
        deltas = gathered.finished(view, ends, self._form, history, length, aim, limits)
        view.given.keep(piece, view.look(piece), gate)
        return deltas

    def _drafts(
        self, view: View, words: Words, wave: Wave, hidden: bool, gate: Tensor | None
    ) -> list[Parted]:
        """The steps of a wave's tensors, range by range, their next state written."""
        log_rate = self._log_rate().to(view.given.dtype)
        how = self.config.update_form, tuple(self.config.directions.items())
        drafts: list[Parted] = []
        momentum_rms, root_rms = view.stats.momentum.split(1), view.stats.root.split(1)
        for bundle in wave.bundles:
            drafts.append(Parted(bundle))
            rms = momentum_rms[bundle.owners[0]], root_rms[bundle.owners[0]]
            for piece in bundle.pieces:
                evened = view.around[bundle.owners[0]] is None
                args = rms, words.of(piece), log_rate, gate, how, words.by_tensor, hidden, evened
                draft: ranges.Draft = view.on_range(ranges.draft, piece, *args)
                drafts[-1].add(draft)
        return drafts

    def _step(self, view: View, words: Words) -> Tensor:
        """(P,) of a whole graph."""
        (piece,) = view.pieces
        history = view.history(piece, hidden_matrices(view.graph), words.by_tensor, words.factored)
        return self._form.step(history, self.config.directions, self._said(view, words, piece))

    def _said(self, view: View, words: Words, piece: Piece) -> Sequence[Tensor]:
        """What the update form is told of a piece: a length, and then what weighs its directions."""
        raw = words.of(piece)
        if words.by_tensor:
            return [*raw]
        return self._form.said(raw, self._log_rate().to(view.given.dtype), self.config.directions)

    def _named(
        self,
        view: View,
        wave: Wave,
        deltas: Sequence[Tensor],
        now: Mapping[str, Sequence[Tensor]],
        state: State,
        memory: Tensor | None,
    ) -> tuple[Tensors, State]:
        """The deltas of a wave's tensors and their next state, by name and in shape."""
        names, shapes = list(view.graph.parameters), view.given.shapes
        changed: dict[str, Sequence[Tensor]] = {"momenta": view.given.momenta, "second": view.given.second}
        if view.whole:
            (piece,) = view.pieces
            momenta, second = view.given.kept(piece, view.look(piece))
            rows = {"momenta": momenta, "second": second, "memory": memory}
            changed = {key: row.split(view.graph.sizes, -1) for key, row in rows.items() if row is not None}
        moved, next_state = {}, {}
        owners = (owner for bundle in wave.bundles for owner in bundle.owners)
        for owner, delta in zip(owners, deltas, strict=True):
            name, shape = names[owner], shapes[owner]
            moved[name] = delta.reshape(shape)
            next_state[name] = {**state[name], **{key: values[owner] for key, values in now.items()}}
            for key, tensors in changed.items():
                value, old = tensors[owner], state[name][key]
                same = not view.whole and value.data_ptr() == old.data_ptr()
                next_state[name][key] = old if same else value.reshape((*value.shape[:-1], *shape))
        return moved, next_state

    def _at(self, graph: ParameterGraph, clock: Clock) -> Timed:
        """`_timed`, in a user's steps out of a table."""
        if torch.compiler.is_compiling() or clock.steps.device.type != "cpu":
            return self._timed(graph, clock)
        of = [self.log_rate, self.decay_shift, self.constants.weights]
        return self._timetable.at(
            graph, clock, lambda later: self._timed(graph, later), [x for x in of if x is not None]
        )

    def _timed(self, graph: ParameterGraph, clock: Clock) -> Timed:
        """What follows from the clock, the config and the constants."""
        config, (steps, horizon) = self.config, clock
        moved, ones = self.constants(*clock), torch.ones_like(steps)
        factor = ones
        if config.anneal:
            warm_up, power = moved.share("warm_up", config.warm_up), moved.factor("cool_down")
            factor = annealing(steps, horizon, warm_up, config.fade, power)
        if config.scales or config.widest or config.widest_output:
            scales = scales_of(graph, config.scales, config.widest, config.widest_output)
            factor = factor * steps.new_tensor(scales)
        rate = self._log_rate().exp().to(steps.dtype) * moved.factor("weight_decay")
        decayed = steps.new_tensor([of_class != "vector" for of_class in classes(graph)])
        gain = config.pace * moved.factor("pace") * settling(*clock)
        return Timed(
            self._decays(steps, moved),
            per_tensor.time_features(*clock),
            factor * moved.rates(classes(graph)),
            ones * moved.factor("relative"),
            decayed * rate * config.weight_decay * decay_share(steps, horizon, config.decay_horizon),
            torch.where(steps > 1, gain, torch.zeros_like(gain)),
            ones * moved.offset("headway"),
            ones * moved.factor("whitening"),
        )

    def _decays(self, steps: Tensor, moved: Moved) -> Decays:
        config = self.config
        new, new_second = (
            1 - steps.new_tensor(config.decays)[:, None],
            steps.new_tensor([1 - config.second_decay]),
        )
        corrections = 1 / moments.weight_seen(steps, (*config.decays, config.second_decay))
        if self.decay_shift is not None:
            logit = torch.logit(steps.new_tensor(config.decays[0])) + (self.decay_shift * SPEED).to(
                steps.dtype
            )
            new = torch.cat([1 - torch.sigmoid(logit).reshape(1, 1), new[1:]])
            corrected = -1 / torch.expm1(logsigmoid(logit) * steps)
            corrections = torch.cat([corrected[None], corrections[1:]])
        if (log := moved.log_decay("momentum_decay", config.decays[0])) is not None:
            new = torch.cat([-torch.expm1(log)[None], new[1:].expand(-1, len(steps))])
            corrections = torch.cat([(-1 / torch.expm1(log * steps))[None], corrections[1:]])
        if (log := moved.log_decay("second_decay", config.second_decay)) is not None:
            new_second = -torch.expm1(log)
            corrections = torch.cat([corrections[:-1], (-1 / torch.expm1(log * steps))[None]])
        return Decays(new, new_second, corrections)

    def _log_rate(self) -> Tensor:
        """() the logarithm of the base rate."""
        return self.log_rate * SPEED

    def hastened(self, meta_parameters: Tensors, log_factors: Tensor) -> dict[str, Tensor]:
        rates = meta_parameters.get("log_rate", self.log_rate)
        return {**meta_parameters, "log_rate": rates + log_factors.to(rates) / SPEED}

    def _factor(self, view: View, timed: Timed) -> Tensor:
        """(B,) what each tensor's step is multiplied by, unless that is too long: annealing, scales, caution."""
        factor = timed.factor
        if self.config.relative:
            factor = factor * relative_rates(view.graph, view.stats.param) ** timed.relative
        if self.config.caution:
            factor = factor * _within(self.config.caution, view.stats)
        return factor

    def _decay(self, view: View, timed: Timed) -> Tensor | None:
        """(B,) the share of a step of the base rate that each tensor loses of itself; None without weight decay."""
        if not self.config.weight_decay:
            return None
        below = self.config.decay_below
        return timed.decay * _within(below, view.stats) if below else timed.decay

    def _pace(self, view: View, timed: Timed, state: State) -> Tensor | None:
        """(B,) how many times as long each tensor's steps have become, if they do.

        Its logarithm grows by k s (h - h0) in a step, h the cosine of the gradient and the direction of the steps
        before it, which is 0 in noise, above where steps are short of a valley and below where they cross it. The
        shares s sum to 1 over the horizon, however long, and fall over it, as annealed steps are short for another
        reason.
        """
        headway = view.stats.headway
        if headway is None:
            return None
        before = torch.stack([state[name]["pace"] for name in view.graph.parameters]).to(headway.dtype)
        grown = before * (timed.gain * (headway - timed.level)).exp()
        return grown.clamp(1 / LONGEST_PACE, LONGEST_PACE)

    def gauges(self) -> dict[str, float]:
        """Figures worth watching in meta-training."""
        figures = {"base_rate": self._log_rate().exp().item()}
        if self.decay_shift is not None:
            figures["momentum_decay"] = (
                1 - self._decays(self.decay_shift.detach().new_ones(1), Moved({})).new[0].item()
            )
        names = self.constants.names
        return figures | {f"constants/{name}": SPEED * self.constants.of(name)[0].item() for name in names}

    def describe(self) -> dict[str, Any]:
        """The config as JSON-able values, for the rule file."""
        return to_mapping(self.config)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> LearnedRule:
        """The inverse of `describe`, with fresh meta-parameters."""
        return cls(from_mapping(LearnedRuleConfig, description, "rule"))


def _within(limit: float, stats: Statistics) -> Tensor:
    """(B,) (limit / r)^2, at most 1, of a tensor whose gradient is r times as long as its second moment's root."""
    return (limit * stats.root / stats.grad).clamp(max=1) ** 2


@made_once
def _waves(graph: ParameterGraph) -> list[Wave]:
    return in_waves(graph, cut(graph))


@made_once
def _static(graph: ParameterGraph) -> Tensor:
    return per_tensor.static_features(graph, torch.empty(0, dtype=torch.float64))
