#!/usr/bin/env bash
# The main job on real input: every .py file of this Python's own library, compressed on all cores.
set -euo pipefail
library=$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
output=demo-output
rm -rf "$output"
export PPSS_STATE_DIR=$PWD/$output.state
trap 'ppss server stop 2>/dev/null; rm -rf "$PPSS_STATE_DIR"' EXIT

say() { printf '\n$ %s\n' "$*"; }

say "ppss run LIBRARY --include '*.py' --exclude site-packages -o $output -c 'gzip -9 < \"\$ITEM\" > \"\$OUTPUT_DIR/\$OUTPUT_FILE.gz\"'"
ppss run "$library" --include '*.py' --exclude site-packages -o "$output" \
    -c 'gzip -9 < "$ITEM" > "$OUTPUT_DIR/$OUTPUT_FILE.gz"'
say ppss status
ppss status
say "ppss items last | head -5"
ppss items last | head -5 || true
say "a look at the outputs: each file as it was?"
sources=$(find "$library" -name site-packages -prune -o -name '*.py' -type f -print | wc -l)
outputs=$(find "$output" -name '*.py.gz' -type f | wc -l)
(cd "$library" && find . -name site-packages -prune -o -name '*.py' -type f -print0) |
    while IFS= read -r -d '' file; do
        gzip -dc "$output/$file.gz" | cmp -s - "$library/$file" || { echo "differs: $file"; exit 1; }
    done
[ "$sources" -eq "$outputs" ] || { echo "$sources files, but $outputs outputs"; exit 1; }
echo "$outputs of $sources files are there, and unpack to what they were: $(du -sh "$output" | cut -f1) in $output/"
