"""Write the bill of materials of the image: what it contains beyond its base image.

    python sbom.py --base IMAGE --go modules.json report.json ... > dockyard.cdx.json

A report is the output of `pip install --report`: the distributions, with the hashes of their installed wheels.
modules.json is the output of `go version -m -json` for the Go program: its modules, with the hashes of go.sum.
"""

import argparse
import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cyclonedx.builder.this import this_component
from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

ROOT = "dockyard"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write the bill of materials of the image.")
    parser.add_argument("--base", required=True, help="the base image, with its digest")
    parser.add_argument("--go", required=True, type=Path, help="output of `go version -m -json`")
    parser.add_argument("reports", nargs="+", type=Path, help="output of `pip install --report`")
    options = parser.parse_args(argv)
    reports = [json.loads(report.read_text()) for report in options.reports]
    found = [
        Component(name=options.base, type=ComponentType.CONTAINER, bom_ref=options.base),
        *(_distribution(each) for report in reports for each in report["install"]),
        *_modules(json.loads(options.go.read_text())),
    ]
    bom = Bom()
    bom.metadata.tools.components.add(this_component())
    bom.metadata.component = next(each for each in found if each.name == ROOT)
    bom.components = [each for each in found if each.name != ROOT]
    bom.register_dependency(bom.metadata.component, bom.components)
    print(JsonV1Dot6(bom).output_as_string(indent=2))


def _distribution(installed: dict[str, Any]) -> Component:
    metadata = installed["metadata"]
    name, version = metadata["name"], metadata["version"]
    purl = PackageURL("pypi", name=name.lower().replace("_", "-"), version=version)
    licence = metadata.get("license_expression")
    return Component(
        name=name,
        version=version,
        description=metadata.get("summary"),
        type=ComponentType.APPLICATION if name == ROOT else ComponentType.LIBRARY,
        licenses=[LicenseFactory().make_from_string(licence)] if licence else [],
        hashes=[
            HashType(alg=HashAlgorithm.SHA_256, content=installed["download_info"]["archive_info"]["hashes"]["sha256"])
        ],
        purl=purl,
        bom_ref=purl.to_string(),
    )


def _modules(program: dict[str, Any]) -> Iterator[Component]:
    go = PackageURL("golang", name="stdlib", version=program["GoVersion"].removeprefix("go"))
    yield Component(name="stdlib", version=go.version, type=ComponentType.LIBRARY, purl=go, bom_ref=go.to_string())
    for module in (program["Main"], *program["Deps"]):
        purl = PackageURL.from_string(f"pkg:golang/{module['Path']}@{module['Version']}")
        checksum = base64.b64decode(module["Sum"].removeprefix("h1:")).hex()
        yield Component(
            name=module["Path"],
            version=module["Version"],
            type=ComponentType.LIBRARY,
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=checksum)],
            purl=purl,
            bom_ref=purl.to_string(),
        )


if __name__ == "__main__":
    main()
