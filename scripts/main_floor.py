"""The import contract "The main floor imports no wing", for lint-imports. What is on the main floor says the list in
`[tool.renderonline.house]`, for this as for `scripts.house`."""

import tomllib

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, output

from scripts.house import ROOT, House


class MainFloorContract(Contract):
    """Kept while no module of the main floor imports one that is not on it."""

    type_name = "main_floor"

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:  # noqa: FBT001
        table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["renderonline"]["house"]
        house = House(ROOT / "src")
        wings = house.wing_imports(set().union(*map(house.fitting, table["main_floor"])))
        return ContractCheck(kept=not wings, metadata={"wings": wings})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for name, wings in check.metadata["wings"].items():
            output.print_error(f"{name} imports {', '.join(wings)}")
