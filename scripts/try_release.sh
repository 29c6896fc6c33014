#!/usr/bin/env bash
# Build wheel and sdist into dist/ and try them: scripts/try_release.sh [--tag vX.Y.Z] [--install] [PYTHON ...]
#
# For each interpreter the wheel goes into an empty environment, and every command answers --help from another directory, with
# the configuration that the wheel brings. Without --install only what --help needs is installed beside it, every module is
# compiled, and all dependencies are resolved without being installed (with uv). With --install all dependencies are
# installed (gigabytes), and the tiny model is trained for two steps.
# With --tag nothing is built unless the tag is the version in src/vlmkit/__init__.py and CHANGELOG.md has a section for it.
set -euo pipefail
cd "$(dirname "$0")/.."

tag="" install="" pythons=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --tag) tag=$2; shift ;;
        --install) install=1 ;;
        *) pythons+=("$1") ;;
    esac
    shift
done
[[ ${#pythons[@]} -gt 0 ]] || pythons=(python3)

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' src/vlmkit/__init__.py)
if [[ -n $tag ]]; then
    [[ $tag == "v$version" ]] || { echo "try_release.sh: the tag is $tag, the version v$version. Mend src/vlmkit/__init__.py." >&2; exit 1; }
    grep -q "^## $version" CHANGELOG.md || { echo "try_release.sh: CHANGELOG.md has no section '## $version'." >&2; exit 1; }
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${pythons[0]}" -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet build uv
rm -rf dist
"$work/tools/bin/python" -m build --outdir dist . > "$work/build.log" || { cat "$work/build.log" >&2; exit 1; }
wheel=$(ls "$PWD"/dist/vlmkit-"$version"-*.whl)
echo "built $(basename "$wheel") and vlmkit-$version.tar.gz"

for python in "${pythons[@]}"; do
    told=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -m venv "$work/$told"
    bin=$work/$told/bin
    if [[ -n $install ]]; then
        "$bin/pip" install --quiet "$wheel"
    else
        "$work/tools/bin/uv" pip compile --quiet --python-version "$told" --output-file "$work/$told.txt" - <<< "vlmkit @ file://$wheel"
        echo "python $told: $(grep -c == "$work/$told.txt") packages resolved"
        "$bin/pip" install --quiet --no-deps --no-warn-conflicts "$wheel"
        "$bin/pip" install --quiet --no-warn-conflicts "hydra-core>=1.3.2,<1.4" "omegaconf>=2.3,<2.4"
    fi
    "$bin/python" -W error -m compileall -q -f "$work/$told/lib/python$told/site-packages/vlmkit"
    mkdir -p "$work/elsewhere"
    for command in "$bin"/vlmkit-*; do
        (cd "$work/elsewhere" && env -u PYTHONPATH "$command" --help > /dev/null)
    done
    echo "python $told: $(ls "$bin"/vlmkit-* | wc -l) commands answer from another directory"
    if [[ -n $install ]]; then
        (cd "$work/elsewhere" && env -u PYTHONPATH "$bin/vlmkit-train" trainer.max_steps=2 trainer.accelerator=cpu \
            data.limit=32 log.progress=false "run_dir=$work/run-$told" > "$work/train.log" 2>&1) || { cat "$work/train.log" >&2; exit 1; }
        test -f "$work/run-$told/hf/model.safetensors"
        echo "python $told: the tiny model trains"
    fi
done
