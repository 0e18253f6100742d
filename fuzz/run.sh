#!/bin/sh
# run.sh SECONDS [TARGET...]: fuzzes each target (default: all) for SECONDS, FUZZ_JOBS of them
# at a time (default: one for each processor).
#
# Needs a stable Rust toolchain and a C++ compiler (CXX), no cargo-fuzz. FUZZ_ASAN=1 adds
# AddressSanitizer, for which it takes the nightly toolchain. Exit code 1: a target failed.
set -eu

usage() {
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

case "${1:-}" in
    '' | *[!0-9]* | 0) usage ;;
esac
seconds=$1
shift
# libFuzzer takes 0 as "for ever".
[ "$seconds" -gt 0 ] || usage

cd "$(dirname "$0")/.."
all=$(for file in fuzz/fuzz_targets/*/*.rs; do basename "$file" .rs; done)
[ $# -gt 0 ] || set -- $all
for target in "$@"; do
    case " $(echo $all) " in
        *" $target "*) ;;
        *)
            echo "run.sh: no target $target; there are:" $all >&2
            exit 2
            ;;
    esac
done

toolchain=
build_dir=fuzz/target
# What cargo-fuzz passes too, but for the sanitizer.
flags='-Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
    -Cdebuginfo=1 -Ccodegen-units=1 -Cdebug-assertions --cfg fuzzing'
if [ "${FUZZ_ASAN:-0}" = 1 ]; then
    toolchain=+nightly
    build_dir=fuzz/target/asan
    flags="$flags -Zsanitizer=address"
fi

host=$(rustc $toolchain -vV | sed -n 's/^host: //p')
# With --target the flags reach neither build scripts nor procedural macros.
unset CARGO_ENCODED_RUSTFLAGS
RUSTFLAGS=$(echo $flags) cargo $toolchain build --quiet --manifest-path fuzz/Cargo.toml \
    --release --locked --bins --target "$host" --target-dir "$build_dir"

# The committed corpus is read only: libFuzzer writes to the first directory it is given.
fuzz() {
    target=$1
    program=$build_dir/$host/release/$target
    finds=fuzz/target/corpus/$target
    artifacts=fuzz/target/artifacts/$target
    log=fuzz/target/logs/$target.log
    mkdir -p "$finds" "$artifacts" fuzz/target/logs
    dictionary=fuzz/dictionaries/$target.dict
    [ -f "$dictionary" ] && dictionary=-dict=$dictionary || dictionary=

    code=0
    "$program" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$artifacts/" $dictionary "$finds" "fuzz/corpus/$target" \
        >"$log" 2>&1 || code=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    coverage=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    if [ "$code" -eq 0 ]; then
        echo "$target: ok, ${runs:-?} runs, coverage ${coverage:-?}"
        return 0
    fi
    artifact=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
    # In one piece, for others run at the same time.
    cat <<END
$target: FAILED (exit code $code), ${runs:-?} runs, coverage ${coverage:-?}; log: $log
$(grep -E 'panicked at|SUMMARY|ERROR' -A 2 "$log" | head -n 12 | sed 's/^/  /')${artifact:+
  artifact:  $artifact
  reproduce: $program $artifact}
END
    return 1
}

jobs=${FUZZ_JOBS:-$(nproc)}
failed=0
running=
count=0
finish() {
    for pid in $running; do
        wait "$pid" || failed=1
    done
    running=
    count=0
}
for target in "$@"; do
    fuzz "$target" &
    running="$running $!"
    count=$((count + 1))
    # All take the same time, so the next ones begin together.
    [ "$count" -lt "$jobs" ] || finish
done
finish
exit $failed
