"""Run a tape symbolically: apply the rule of each operation to axes instead of numbers.

A pass may find that an axis which a view had split into factors is afterwards taken apart along an outer factor
(query, key and value of a fused projection). Its inner factors are then not one and the same axis for all entries
of the outer one, so the pass is repeated with that view cut into segments (`Value.segments`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.utils._pytree import tree_leaves, tree_map

from lopt.graph.tracing.axes import Axis, fix, is_fixed, leaves
from lopt.graph.tracing.ops.pointwise import pointwise
from lopt.graph.tracing.ops.table import RULES, SEGMENT_RULES
from lopt.graph.tracing.speech import NoRuleError, Speech, Views, fixed_dims, is_ref
from lopt.graph.tracing.tape import Call, Ref, Tape
from lopt.graph.tracing.values import NOWHERE, Dim, Origin, Value

MAX_PASSES = 6


def interpret(tape: Tape, state_names: Mapping[str, str]) -> Interpreter:
    """The interpreter after the last pass; `state_names` says "parameter", "fixed" or "buffer" of each."""
    views: Views = {}
    for _ in range(MAX_PASSES):
        interpreter = Interpreter(tape, state_names, {key: set(cuts) for key, cuts in views.items()})
        interpreter.run()
        if interpreter.speech.views == views:
            break
        views = interpreter.speech.views
    return interpreter


class Interpreter:
    """One pass over a tape: what rules say of each call, bound to the tensors that it returns."""

    def __init__(self, tape: Tape, state_names: Mapping[str, str], views: Views) -> None:
        self.tape = tape
        self.state_names = state_names
        self.speech = Speech(tape, views)
        self.know = self.speech.know
        self.values: dict[int, Value] = {}
        self.tensors: dict[str, Value] = {}
        self._dirty: set[int] = set()

    # -- running --------------------------------------------------------------------------------------------

    def run(self) -> None:
        for number, name in self.tape.names.items():
            shape = self.tape.infos[number].shape
            dims = tuple(
                Dim(n, Axis(n), frozenset({Origin(name, axis, 0, n)}) if n else NOWHERE)
                for axis, n in enumerate(shape)
            )
            self.values[number] = self.tensors[name] = Value(dims, pure=True)
        for number in self.tape.inputs:
            info = self.tape.infos[number]
            features = info.dtype.is_floating_point or info.dtype.is_complex  # indices and masks have places
            dims = fixed_dims(info.shape, "input" if features else "position")
            self.values[number] = Value(dims, pure=False)
        for position, call in enumerate(self.tape.calls):
            self.speech.position = position
            self._step(call)
        for number in self.tape.outputs:
            for axis in self._value(Ref(number)).axes():
                fix(axis, "output")
        self._fix_constants()

    def _fix_constants(self) -> None:
        for number, name in self.tape.names.items():
            value = self.tensors[name]
            # What a buffer holds unless it goes along with neurons (masks, positions) was written down by hand.
            written = self.tape.infos[number].storage in self.tape.mutated
            state = self.state_names[name]
            if state == "fixed" or (state == "buffer" and not written and name not in self.know.state):
                self._fix(value, "constant")
            if number not in self.speech.used and number not in self.tape.outputs:
                self._fix(value, "unused")
            for axis in value.axes():
                for leaf in leaves(axis):
                    if leaf.unread and not leaf.fixed:
                        fix(leaf, "unused")

    def _step(self, call: Call) -> None:
        args, kwargs = tree_map(self._value, (call.args, call.kwargs))
        inputs = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Value)]
        refs = [ref for ref in tree_leaves(call.outputs) if is_ref(ref)]
        self.speech.shapes = [self.tape.infos[ref.index].shape for ref in refs]
        self.speech.mark = next((v.mark for v in inputs if not v.pure and v.mark is not None), None)
        self.speech.constant = False
        outputs = self._apply(call, args, kwargs, inputs)
        depth = self._depth(inputs)
        # What data was written to is no longer pure, nor is any view of the same storage, made before or after.
        if call.writes and not all(v.pure for v in inputs):
            self._dirty.update(self.tape.infos[ref.index].storage for ref in call.writes)
        self._bind(refs, outputs, self.speech.constant or all(v.pure for v in inputs), depth)

    def _apply(self, call: Call, args: Any, kwargs: Any, inputs: list[Value]) -> list[Any]:
        rule = RULES.get(call.name) or (pointwise if call.pointwise else None)
        if rule is None:
            return self._unknown(call.label, inputs)
        if rule not in SEGMENT_RULES:
            args, kwargs = tree_map(self.speech.whole, (args, kwargs))
        name = {"op": call.name} if rule is pointwise else {}
        try:
            result = rule(self.speech, *args, **kwargs, **name)
        except NoRuleError:
            return self._unknown(call.label, inputs)
        except Exception as error:
            # A mistake in a rule must not cost the user his graph, but it must not pass for "no rule" either.
            self.know.failed[call.label] = f"{type(error).__name__}: {error}"
            return self._unknown(call.label, inputs)
        outputs = result if isinstance(result, list) else [result]
        if not all(_fits(output, shape) for output, shape in zip(outputs, self.speech.shapes, strict=False)):
            return self._unknown(call.label, inputs)
        for ref in call.writes:
            self._tie_written(ref, outputs)
        return outputs if len(outputs) >= len(self.speech.shapes) else self._unknown(call.label, inputs)

    def _tie_written(self, ref: Ref, outputs: list[Any]) -> None:
        target = self.speech.whole(self._value(ref))
        for output in outputs[:1]:
            dims = self.speech.whole(output).dims if isinstance(output, Value) else output
            if dims is not None and tuple(d.size for d in dims) == target.shape:
                for a, b in zip(target.dims, dims, strict=True):
                    self.speech.tie(a, b)

    def _unknown(self, label: str, inputs: list[Value]) -> list[Any]:
        touched = self.know.unknown.setdefault(label, set())
        for value in inputs:
            for axis in value.axes():
                if not is_fixed(axis):
                    touched.update(self._holders(axis))
                fix(axis, "untied")
        return [fixed_dims(shape, "untied") for shape in self.speech.shapes]

    def _holders(self, axis: Axis) -> set[str]:
        inside = set(map(id, leaves(axis)))
        return {
            name
            for name, value in self.tensors.items()
            for other in value.axes()
            if any(id(leaf) in inside for leaf in leaves(other))
        }

    def _bind(self, refs: Sequence[Ref], outputs: list[Any], pure: bool, depth: int) -> None:
        for ref, shape, output in zip(refs, self.speech.shapes, outputs, strict=False):
            if ref.index in self.values:  # in place: the tensor keeps its axes
                old = self.values[ref.index]
                self.values[ref.index] = replace(
                    old, pure=old.pure and pure, depth=max(old.depth, depth), mark=self.speech.mark
                )
                continue
            if output is None:
                output = fixed_dims(shape)
            value = output if isinstance(output, Value) else Value(tuple(output), pure)
            assert value.shape == shape, f"a rule gave {value.shape} for {shape}"
            if self.tape.infos[ref.index].storage in self.tape.mutated:  # uniform no longer, once written to
                dims = tuple(d if d.axis else self.speech.free(d.size) for d in self.speech.whole(value).dims)
                value = Value(dims, pure)
            parts = tuple(Value(p.dims, pure, depth, self.speech.mark) for p in value.segments)
            self.values[ref.index] = replace(
                value, pure=pure, depth=depth, mark=self.speech.mark, segments=parts
            )

    def _depth(self, inputs: list[Value]) -> int:
        depth = max((v.depth for v in inputs), default=0)
        origins = frozenset().union(*[v.origins for v in inputs if v.pure])
        if origins and not all(v.pure for v in inputs):
            depth += 1
            for origin in origins:
                self.know.depths.setdefault(origin.tensor, depth)
        return depth

    def _value(self, ref: Any) -> Any:
        if not is_ref(ref):
            return ref
        value = self.values.get(ref.index)
        info = self.tape.infos[ref.index]
        if value is None:  # made outside of what was recorded
            value = self.values[ref.index] = Value(fixed_dims(info.shape, "constant"), pure=True)
        if value.pure and info.storage in self._dirty:
            value = replace(value, pure=False)
        return value

    def _fix(self, value: Value, why: str) -> None:
        for axis in value.axes():
            fix(axis, why)


def _fits(output: Any, shape: tuple[int, ...]) -> bool:
    if output is None:
        return True
    return (output.shape if isinstance(output, Value) else tuple(d.size for d in output)) == shape
