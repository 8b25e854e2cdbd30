#!/usr/bin/env bash
# The main job on real input: every .py file of this Python's own library, compressed on all cores.
set -euo pipefail
output=demo-output
command='gzip -9 < "$ITEM" > "$OUTPUT_DIR/$OUTPUT_FILE.gz"'
library=$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
pip=$(python -c 'import os, pip; print(os.path.relpath(os.path.dirname(pip.__file__)))')
PPSS_STATE_DIR=$(mktemp -d) # a server of its own: nothing is left behind
export PPSS_STATE_DIR
trap 'ppss server stop >/dev/null 2>&1 || true; rm -rf "$PPSS_STATE_DIR"' EXIT
rm -rf "$output"

say() { printf '\n$ %s\n' "$*"; }

# Debian ships the library without its tests, 666 files: there pip, which comes with Python, makes it over 1,000.
sources=("$library")
[ "$(find "$library" -name site-packages -prune -o -name '*.py' -print | wc -l)" -ge 1000 ] || sources+=("$pip")

echo "Compress every .py file of this Python's own library, one gzip a file, on all cores:"
say "ppss run ${sources[*]} --include '*.py' --exclude site-packages -o $output -c '$command'"
ppss run "${sources[@]}" --include '*.py' --exclude site-packages -o "$output" -c "$command"
say "ppss status"
ppss status
say "ppss items | tail -n 4"
ppss items | tail -n 4
say "find $output -type f | sort | head -n 4"
find "$output" -type f | sort | sed -n 1,4p # all of it is read: `head` would end `sort` with SIGPIPE

# Not `zcat | cmp` per file: that takes as long as the job itself.
python - "$output" "${sources[@]}" <<'END'
import gzip, sys
from pathlib import Path

output, *sources = map(Path, sys.argv[1:])
total = packed = plain = 0
for source in sources:
    mirror = output / source.name if len(sources) > 1 else output
    for path in source.rglob("*.py"):
        name = path.relative_to(source)
        if path.is_symlink() or "site-packages" in name.parts:
            continue
        original, made = path.read_bytes(), mirror / f"{name}.gz"
        if not made.exists() or gzip.decompress(made.read_bytes()) != original:
            sys.exit(f"demo: {made} is not what became of {path}")
        total, packed, plain = total + 1, packed + made.stat().st_size, plain + len(original)
outputs = sum(path.is_file() for path in output.rglob("*"))
if outputs != total:
    sys.exit(f"demo: {total:,} files, but {outputs:,} outputs")
print(f"\nChecked: each of the {total:,} files is in {output}/, and unpacks to what it was. ", end="")
print(f"{plain / 1e6:.1f} MB became {packed / 1e6:.1f} MB.")
END
cat <<'END'

Your turn. In this terminal:  export PATH="$PWD/.venv/bin:$PATH"
and then, for example:        seq 5 | ppss run -- echo number
END
