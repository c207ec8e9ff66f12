"""Adds the one compiled extension, ``clipfast_kernels._C``, to what pyproject.toml says.

The extension is optional: without torch or a working C++ compiler at build time, or if our own
source does not compile, the install succeeds without it. The reason is printed and left in
``clipfast_kernels/_build.json``, where ``clipfast doctor`` finds it. Its CUDA kernels are optional
in the same way: they need nvcc, from the PATH, CUDA_HOME or NVIDIA's wheels.
"""

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

NAME = "clipfast_kernels._C"
RECORD = "_build.json"
SOURCES = [
    "csrc/extension.cpp",
    "csrc/cpu/attention.cpp",
    "csrc/cpu/batch_norm.cpp",
    "csrc/cpu/contrastive.cpp",
    "csrc/cpu/quick_gelu.cpp",
    "csrc/cpu/sigmoid.cpp",
    "csrc/cpu/similarity.cpp",
]
HEADERS = [
    "csrc/cpu/attention_unit.h",
    "csrc/cpu/batch_norm_tile.h",
    "csrc/cpu/block_product.h",
    "csrc/cpu/contrastive_tile.h",
    "csrc/cpu/logits.h",
    "csrc/cpu/prepare.h",
    "csrc/cpu/quick_gelu_tile.h",
    "csrc/cpu/sigmoid_tile.h",
    "csrc/cpu/simd.h",
    "csrc/cpu/simd_levels.h",
    "csrc/cpu/similarity_tile.h",
    "csrc/cpu/sweep.h",
]
CUDA_KERNELS = "csrc/cuda/attention.cu"
CUDA_SOURCES = ["csrc/cuda/attention_operators.cpp"]  # only beside the kernels
CUDA_HEADERS = [
    "csrc/cuda/attention.h",
    "csrc/cuda/attention_bwd.cuh",
    "csrc/cuda/attention_fragments.cuh",
    "csrc/cuda/attention_fwd.cuh",
    "csrc/cuda/attention_sweep.cuh",
    "csrc/cuda/device.cuh",
]
CUDA_ARCHITECTURES = "8.0;9.0+PTX"  # unless TORCH_CUDA_ARCH_LIST says otherwise; at least 8.0
# torch's stable ABI of 2.10 and Python's of 3.11: one binary for these and everything newer.
TORCH_MINIMUM = (2, 10)
MACROS = [("TORCH_TARGET_VERSION", "0x020a000000000000"), ("Py_LIMITED_API", "0x030B0000")]
# No -march: the kernels choose their instruction set when they run. -Wno-psabi: vectors wider than
# the baseline's are only passed between functions that are inlined.
FLAGS = ["-std=c++17", "-O3", "-fvisibility=hidden", "-Wno-psabi", "-g0"]
# Outlives an editable install's temporary folders: unchanged sources are not compiled again.
CACHE = Path("build/extension")


class Skipped(Exception):
    """Why the extension cannot be built, in one sentence without a full stop."""


class BuildOptional(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # of an earlier build, that may have had other sources
        outcome, reason, cuda = "built", "it was built", "the extension was not built"
        try:
            cuda = self._build(ext, target)
        except Skipped as why:
            outcome, reason = "skipped", str(why)
            self._announce(reason)
        fields = {"extension": outcome, "reason": reason, "cuda": cuda}
        record = json.dumps(fields, indent=2) + "\n"
        target.with_name(RECORD).write_text(record, encoding="utf-8")

    def _build(self, ext: Extension, target: Path) -> str:
        """Makes the extension; returns what became of its CUDA kernels."""
        if self.compiler.compiler_type != "unix":
            raise Skipped("the extension builds with GCC or Clang, and this is neither")
        torch = find_torch()
        compiler = find_compiler(self.compiler.compiler_so_cxx)
        cached = CACHE / f"{build_key(torch, compiler)}{target.suffix}"
        cached_note = cached.with_suffix(".cuda")
        if cached.exists() and cached_note.exists():
            shutil.copyfile(cached, target)
            return cached_note.read_text(encoding="utf-8")
        cuda = self._add_cuda(ext)
        ext.include_dirs = [str(torch / "include")]
        ext.library_dirs = [str(torch / "lib")]
        try:
            super().build_extension(ext)
        except Exception as error:  # setuptools and its vendored distutils raise many kinds
            check_compiler_works(compiler)
            raise Skipped(
                f"clipfast's own C++ source does not compile or link with {compiler}, "
                "whose messages `pip install -v` shows; please report them"
            ) from error
        CACHE.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(target, cached)
        cached_note.write_text(cuda, encoding="utf-8")
        return cuda

    def _add_cuda(self, ext: Extension) -> str:
        try:
            nvcc = find_nvcc()
            runtime = find_cuda_runtime(nvcc)
            kernels = compile_cuda(nvcc, Path(self.build_temp))
        except Skipped as why:
            return str(why)
        ext.sources = [*ext.sources, *CUDA_SOURCES]
        # CUDA's runtime is inside, and its names are not seen from outside: torch has another.
        ext.extra_objects = [str(kernels), str(runtime)]
        ext.extra_link_args = ["-Wl,--exclude-libs,ALL"]
        ext.libraries = [*ext.libraries, "dl", "rt", "pthread"]
        return "it was built"

    def _announce(self, reason: str) -> None:
        line = "*" * 78
        message = f"clipfast: the compiled CPU kernels are skipped: {reason}."
        print(line, message, line, sep="\n", file=sys.stderr)

    def _made(self) -> list[Path]:
        """The extension and its record, as far as this build made them."""
        package = Path(self.build_lib, "clipfast_kernels")
        candidates = [package / Path(self.get_ext_filename(NAME)).name, package / RECORD]
        return [path for path in candidates if path.exists()]

    # The rest tells setuptools that there is a record and may be no extension. `inplace` means an
    # editable install, which uses the files of the source tree.

    def _in_source(self, name: str) -> Path:
        build_py = self.get_finalized_command("build_py")
        return Path(build_py.get_package_dir("clipfast_kernels"), name)

    def copy_extensions_to_source(self) -> None:
        # Built from sources that may have changed since, an old one must not stand in for this one.
        for stale in self._in_source("").glob("_C.*"):
            stale.unlink()
        for path in self._made():
            shutil.copyfile(path, self._in_source(path.name))

    def get_outputs(self) -> list[str]:
        return [str(path) for path in self._made()]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return {str(path): str(self._in_source(path.name)) for path in self._made()}


class BuildWithSources(build_py):
    """A wheel has what builds the extension along, for `clipfast_kernels/rebuild.py`."""

    def run(self) -> None:
        super().run()
        for source, target in self._sources():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        made = [str(target) for _, target in self._sources()]
        return super().get_outputs(include_bytecode) + made

    def _sources(self) -> list[tuple[Path, Path]]:
        """Each file, and where it goes. An editable install has them as they are."""
        if self.editable_mode:
            return []
        folder = Path(self.build_lib, "clipfast_kernels", "_source")
        files = [Path("setup.py"), *(path for path in Path("csrc").rglob("*") if path.is_file())]
        return [(path, folder / path) for path in sorted(files)]


def find_torch() -> Path:
    """torch's folder, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise Skipped("torch was not there at build time (pip's build isolation hides it)")
    folder = Path(spec.origin).parent
    version = re.match(r"(\d+)\.(\d+)", read_version(folder))
    if version is None or tuple(map(int, version.groups())) < TORCH_MINIMUM:
        expected = ".".join(map(str, TORCH_MINIMUM))
        raise Skipped(f"torch {expected} or newer was expected, got {read_version(folder)}")
    return folder


def read_version(torch: Path) -> str:
    text = (torch / "version.py").read_text(encoding="utf-8")
    found = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", text)
    return found.group(1) if found else "unknown"


def find_compiler(command: list[str]) -> str:
    path = shutil.which(command[0])
    if path is None:
        raise Skipped(f"no C++ compiler: {command[0]!r} was not found")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise Skipped("Python's own headers are not there (Debian's package python3-dev has them)")
    return path


def check_compiler_works(compiler: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <vector>\nint main() { return std::vector<int>(1)[0]; }\n")
        command = [compiler, "-std=c++17", str(source), "-o", str(source.with_suffix(""))]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        why = one_line(result.stderr) or "without a message"
        raise Skipped(f"{compiler} cannot compile a small C++ program ({why})")


def find_nvcc() -> Path:
    homes = [Path(home) for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]
    wheels = importlib.util.find_spec("nvidia")
    for folder in wheels.submodule_search_locations or [] if wheels else []:
        homes += [*sorted(Path(folder).glob("cu*")), Path(folder, "cuda_nvcc")]
    candidates = [shutil.which("nvcc"), *(home / "bin" / "nvcc" for home in homes)]
    for candidate in candidates:
        if candidate is not None and os.access(candidate, os.X_OK):
            return Path(candidate)
    raise Skipped("nvcc was not found on the PATH, in CUDA_HOME or among NVIDIA's wheels")


def find_cuda_runtime(nvcc: Path) -> Path:
    """The runtime as a static library, of the toolkit that this nvcc says it is part of."""
    # It prints as `#$ TOP=...` where it looks for the rest of itself.
    command = [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"TOP=(.+)", done.stderr)
    top = Path(found.group(1).strip()) if found else nvcc.parent.parent
    folders = [top / "lib64", top / "lib", *sorted(top.glob("targets/*/lib"))]
    for folder in folders:
        if (folder / "libcudart_static.a").exists():
            return folder / "libcudart_static.a"
    raise Skipped(f"libcudart_static.a is not beside {nvcc}")


def cuda_targets() -> list[str]:
    """nvcc's options for the architectures."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES
    options = []
    for major, minor, suffix, ptx in re.findall(r"(\d+)\.(\d)([af]?)(\+PTX)?", wanted):
        number = f"{major}{minor}{suffix}"
        if int(major) < 8:
            continue
        options.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if ptx:
            options.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    if not options:
        raise Skipped(f"TORCH_CUDA_ARCH_LIST is {wanted!r}, expected 8.0 or above in it")
    return options


def compile_cuda(nvcc: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "attention_cuda.o"
    command = [str(nvcc), "-std=c++17", "-O3", "--threads=0", *cuda_targets()]
    command += ["-Xcompiler=-fPIC,-fvisibility=hidden", "-c", CUDA_KERNELS, "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        why = one_line(done.stderr) or "without a message"
        raise Skipped(f"{nvcc} does not compile {CUDA_KERNELS} ({why})")
    return made


def version_of(tool: str | Path) -> bytes:
    return subprocess.run([tool, "--version"], capture_output=True, check=False).stdout


def build_key(torch: Path, compiler: str) -> str:
    try:
        nvcc = find_nvcc()
        cuda = str(nvcc).encode() + version_of(nvcc)
    except Skipped:
        cuda = b"none"
    key = hashlib.sha256(
        repr(
            (
                *(sys.platform, platform.machine(), FLAGS, MACROS, read_version(torch)),
                *(os.environ.get(name) for name in ("CFLAGS", "CXXFLAGS", "LDFLAGS")),
                os.environ.get("TORCH_CUDA_ARCH_LIST"),
            )
        ).encode()
        + version_of(compiler)
        + cuda
    )
    for path in [*SOURCES, *HEADERS, CUDA_KERNELS, *CUDA_SOURCES, *CUDA_HEADERS]:
        key.update(Path(path).read_bytes())
    return key.hexdigest()[:16]


def packages() -> list[str]:
    """Every folder with code, under the name that pyproject.toml gives its root."""
    bench = ["clipfast_bench", *(f"clipfast_bench.{name}" for name in find_packages("bench"))]
    return find_packages(include=["clipfast", "clipfast.*"]) + find_packages("kernels") + bench


def one_line(text: object) -> str:
    return " ".join(str(text).split())[:200]


setup(
    packages=packages(),
    ext_modules=[
        Extension(
            NAME,
            SOURCES,
            depends=[*HEADERS, *CUDA_HEADERS],
            define_macros=MACROS,
            extra_compile_args=FLAGS,
            libraries=["torch_cpu"],
            language="c++",
            py_limited_api=True,
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildOptional, "build_py": BuildWithSources},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
