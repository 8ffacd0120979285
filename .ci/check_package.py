"""Check that dist/ holds the package and nothing else, is the same wherever it is built, and is light to install.

Compares the wheel and the source archive with the files of the checkout, builds both again from a copy elsewhere and
compares every byte, reads the metadata, and lets uv say what the package adds to an environment that has Airflow.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
UV = ROOT / ".cache" / "environments" / "uv" / "bin" / "uv"
AIRFLOWS = ("2.11.2", "3.3.2")
EXTRAS = ("", "[redis]", "[http]", "[socks]")
# Hatchling adds these whatever the project says.
ALWAYS_IN_SDIST = {".gitignore", "PKG-INFO", "pyproject.toml"}
LOWER_BOUND = re.compile(r"[a-z-]+(\[[a-z]+\])?>=[0-9.]+")


def run(*command: str | Path, folder: Path = ROOT, text: str | None = None) -> str:
    """Run a program and return what it printed."""
    done = subprocess.run(command, cwd=folder, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr}")
    return done.stdout


def same(what: str, found: object, expected: object) -> None:
    """End with both when something is not as it should be."""
    if found != expected:
        raise SystemExit(f"{what}: expected {expected}, found {found}")


def none_left(what: str, left: set[str]) -> None:
    """End with what there is when there should be nothing."""
    if left:
        raise SystemExit(f"{what}: {', '.join(sorted(left))}")


def checkout() -> set[str]:
    """Return the files of the checkout that git does not ignore."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    return {name for name in listed if (ROOT / name).exists()}


def check_wheel(wheel: Path, files: set[str], included: dict[str, str]) -> None:
    """Compare the wheel with the package's folder, where some files have other names, and with its entry points."""
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        entries = configparser.ConfigParser(delimiters=("=",))
        entries.read_string(archive.read(next(name for name in held if name.endswith("entry_points.txt"))).decode())
    about = next(iter(held & {name for name in held if name.endswith("/METADATA")})).removesuffix("METADATA")
    wanted = {f"{about}{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    wanted |= {included.get(name, name) for name in files if name.startswith("techflow_provider/")}
    wanted |= {
        name.replace("dags_examples", included["dags_examples"]) for name in files if name.startswith("dags_examples/")
    }
    none_left("files that the wheel lacks", wanted - held)
    none_left("files that the wheel should not have", held - wanted)
    named = {f"{each.partition(':')[0].replace('.', '/')}.py" for part in entries.values() for each in part.values()}
    none_left("modules of entry points that the wheel lacks", named - held)


def check_sdist(sdist: Path, files: set[str], included: list[str]) -> None:
    """Compare the source archive with the checkout."""
    with tarfile.open(sdist) as archive:
        held = {each.name.partition("/")[2] for each in archive.getmembers() if each.isfile()}
    wanted = {name for name in files for each in included if name == each or name.startswith(f"{each}/")}
    none_left("files that the source archive lacks", (wanted | ALWAYS_IN_SDIST) - held)
    none_left("files that the source archive should not have", held - wanted - ALWAYS_IN_SDIST)


def check_metadata(wheel: Path, project: dict[str, Any]) -> None:
    """Compare what installers and people read with what the tests cover."""
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    metadata = Parser().parsestr(text)
    matrix = [line.split() for line in (ROOT / ".ci" / "matrix.txt").read_text().splitlines()]
    classified = {each.rpartition(" ")[2] for each in metadata.get_all("Classifier", []) if "Python :: 3." in each}
    same("Pythons of the classifiers and of the matrix", sorted(classified), sorted({line[1] for line in matrix}))
    same("the oldest Python", metadata["Requires-Python"], f">={min(classified)}")
    same("the name", metadata["Name"], project["name"])
    same("the version", metadata["Version"], wheel.name.split("-")[1])
    same("the licence", metadata["License-Expression"], "Apache-2.0")
    same("the extras", metadata.get_all("Provides-Extra"), sorted(project["optional-dependencies"]))
    required = {each.partition(";")[0].strip() for each in metadata.get_all("Requires-Dist", [])}
    none_left("requirements other than a lower bound", {each for each in required if not LOWER_BOUND.fullmatch(each)})


def check_rebuild(files: set[str], folder: Path) -> None:
    """Build both archives from a copy elsewhere and compare every byte."""
    for name in files:
        (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "copy" / name)
    run(UV, "build", "--quiet", "--out-dir", folder / "dist", folder=folder / "copy")
    for built in (folder / "dist").glob("airflow*"):
        same(f"{built.name} built again", built.read_bytes() == (DIST / built.name).read_bytes(), expected=True)


def installed_bytes(wheel: Path, folder: Path) -> int:
    """Return the size of the package as it is installed, with what Python compiles of it."""
    run(UV, "pip", "install", "--quiet", "--no-deps", "--compile-bytecode", "--target", folder, wheel)
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def resolved(*requirements: str) -> set[str]:
    """Return the distributions that uv would install for some requirements, with their versions."""
    command = (UV, "pip", "compile", "--quiet", "--no-annotate", "--no-header", "--python-version", "3.12", "-")
    return set(run(*command, text="\n".join(requirements)).splitlines())


def print_what_is_added(wheel: Path, airflow: str) -> None:
    """Print what the package brings to an environment that has an Airflow of this version."""
    present = resolved(f"apache-airflow=={airflow}")
    for extra in EXTRAS:
        ours = f"airflow-provider-techflow{extra} @ {wheel.as_uri()}"
        more = {each for each in resolved(f"apache-airflow=={airflow}", ours) - present if " @ " not in each}
        names = " ".join(sorted(each.partition("==")[0] for each in more))
        print(f"· beside Airflow {airflow}, techflow{extra} adds itself and {len(more)} more: {names or 'none'}")


def main() -> int:
    """Check what is in dist/ and print its size and what it brings along."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    files = checkout()
    targets = project["tool"]["hatch"]["build"]["targets"]
    check_wheel(wheel, files, targets["wheel"]["force-include"])
    check_sdist(sdist, files, targets["sdist"]["include"])
    check_metadata(wheel, project["project"])
    with tempfile.TemporaryDirectory() as folder:
        check_rebuild(files, Path(folder))
        size = installed_bytes(wheel, Path(folder) / "installed")
    sizes = [f"{name} {each.stat().st_size / 1000:.0f} kB" for name, each in (("wheel", wheel), ("source", sdist))]
    print(f"· {', '.join(sizes)}, each the same when it is built again elsewhere")
    print(f"· installed and compiled {size / 1000:.0f} kB")
    for airflow in AIRFLOWS:
        print_what_is_added(wheel, airflow)
    return 0


if __name__ == "__main__":
    sys.exit(main())
