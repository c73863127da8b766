"""No import circles, not even lazy ones: grimp sees every import, inside functions and under TYPE_CHECKING too."""

from __future__ import annotations

import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import grimp


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = grimp.build_graph("lopt", "meta_tasks")
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_importing_lopt_loads_no_graph_library() -> None:
    """PyTorch Geometric takes longer to import than all of lopt, and only `to_pyg` needs it."""
    code = "import sys, lopt, lopt.cli.main; sys.exit('torch_geometric' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
