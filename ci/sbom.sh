#!/usr/bin/env bash
# Writes the SBOM of a wheel with all its extras, as they are installed now, as CycloneDX JSON.
#
#   ci/sbom.sh WHEEL FILE            needs cyclonedx-py of ci/release_requirements.txt
#
# The package itself has no dependencies.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

${PYTHON:-python3} -m venv --without-pip "$work/venv"
${PYTHON:-python3} -m pip --python "$work/venv/bin/python" install -q "$1[all,score]"
version=$(basename "$1" | cut -d- -f2)
sed "s/^dynamic = .*/version = \"$version\"/" "$(dirname "$0")/../pyproject.toml" >"$work/pyproject.toml"
cyclonedx-py environment --output-reproducible --mc-type library \
    --pyproject "$work/pyproject.toml" --output-file "$2" "$work/venv/bin/python"
