from __future__ import annotations

from dataclasses import replace

from torch import nn

from lopt.graph import ParameterGraph
from lopt.graph.summary import axes_text, group_names


def test_the_table_of_a_small_network(cnn_graph: ParameterGraph) -> None:
    expected = """\
parameter    shape          axes              kind    depth
-----------  -------------  ----------------  ------  -----
conv.weight  3 x 1 x 2 x 2  [h1, in1, 2, 2]   weight  0.00
conv.bias    3              [h1]              bias    0.00
norm.scale   3              [h1]              scale   0.00
head.weight  2 x 12         [out1, h1 x pos1]  weight  1.00
temperature  scalar         []                other   0.00

group  size  kind      activation  members
-----  ----  --------  ----------  -------
in1    1     input                 conv.weight[1]
h1*    3     hidden                conv.weight[0], conv.bias[0], norm.scale[0] and 1 more
pos1   4     position              head.weight[1]
out1   2     output                head.weight[0]

43 scalars in 5 parameters; 6 groups, 1 of them permutable (3 neurons); rung: traced"""
    squeeze = [line.split() for line in cnn_graph.summary().splitlines() if "--" not in line]
    assert squeeze == [line.split() for line in expected.splitlines() if "--" not in line]


def test_columns_line_up(attention_graph: ParameterGraph) -> None:
    lines = attention_graph.summary().splitlines()
    starts = [lines[0].index(word) for word in ("shape", "axes", "kind")]
    for line in lines[2:6]:
        assert all(line[start - 1] == " " and line[start] != " " for start in starts), line


def test_products_and_concatenations_are_written_out(attention_graph: ParameterGraph) -> None:
    names = group_names(attention_graph)
    texts = {n: axes_text(attention_graph, s, names) for n, s in attention_graph.parameters.items()}
    assert texts["qkv.weight"] == "[2(h2 x h3)|h2 x h4, h1]"
    assert texts["out.weight"] == "[h1, h2 x h4]"
    assert texts["filter"] == "[h1, 1, 5]"
    assert "query|key|value" in attention_graph.summary()


def test_tied_names_are_shown(cnn_graph: ParameterGraph) -> None:
    spec = replace(cnn_graph.parameters["head.weight"], aliases=("stem.weight",))
    tied = replace(cnn_graph, parameters={**cnn_graph.parameters, "head.weight": spec})
    assert "head.weight = stem.weight  2 x 12" in tied.summary()


def test_the_rung_is_told() -> None:
    summary = ParameterGraph.untied(nn.Linear(2, 3).named_parameters()).summary()
    assert summary.endswith(
        "9 scalars in 2 parameters; 3 groups, 0 of them permutable (0 neurons); rung: untied"
    )
