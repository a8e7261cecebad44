#!/usr/bin/env bash
# Sets up and runs every test: the quick ones, or with --full the long ones too. Ends with a table of what ran and
# what was skipped and why; the exit code is 0 only if nothing failed.
#
# Tests that need an optional part of the machine (mpi, slurm, netns, python, nccl, gpu) are skipped without it.
# REQUIRE=mpi,slurm,netns makes them fail instead.

# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

LIBTEST_OPTIONS=()
case $# in
    0) ;;
    1) [[ $1 == --full ]] || fail "unknown argument $1; usage: bash launch/test.sh [--full]"
        LIBTEST_OPTIONS=(-- --include-ignored) ;;
    *) fail "too many arguments; usage: bash launch/test.sh [--full]" ;;
esac

TEST_LOG=$LOGS/test.log
# Cargo hides the output of tests that pass, so tests append here what they skip: SKIPPED part: test: reason
export WRN_DIST_SKIP_LOG=$LOGS/skipped.log

# summary TEST_LOG SKIP_LOG: the table, the lists below it, and the line of totals. Exit code 1 if something failed.
summary() {
    awk '
        function finish(passed, failed, ignored, time) {
            if (binary == "") return
            if (passed + failed + ignored)
                row[++rows] = sprintf("%-28s %7s %7s %8s %9s", binary, passed, failed, ignored, time)
            total_passed += passed; total_failed += failed
            binary = ""
        }
        # A binary without a result crashed or was killed.
        function begin(name) {
            if (binary != "") failure[++failures] = binary ": did not run to its end"
            if (binary != "") finish(0, 1, 0, "-")
            binary = name
        }
        FILENAME == skip_log && /^SKIPPED / {
            if (!seen[$0]++) { sub(/^SKIPPED /, ""); skip[++skips] = $0; total_passed-- }
            next
        }
        /^ +Running .*\(.*\)$/ {
            name = $NF
            sub(/^.*\//, "", name); sub(/-[0-9a-f]+\)$/, "", name)
            begin(name ($2 == "unittests" ? " (unit)" : ""))
        }
        /^ +Doc-tests / { begin($2 " (doc)") }
        /^test .* \.\.\. FAILED/ { failure[++failures] = binary ": " $2 }
        /^test .* \.\.\. ignored/ {
            reason = $0
            if (!sub(/^.* \.\.\. ignored, /, "", reason)) reason = "no reason given"
            skip[++skips] = binary ": " $2 ": " reason
        }
        /^test result: / {
            for (i = 1; i < NF; i++) {
                if ($(i + 1) ~ /^passed;/) passed = $i
                if ($(i + 1) ~ /^failed;/) failed = $i
                if ($(i + 1) ~ /^ignored;/) ignored = $i
            }
            finish(passed, failed, ignored, $NF)
        }
        END {
            begin("")
            printf "\n%-28s %7s %7s %8s %9s\n", "test binary", "passed", "failed", "ignored", "time"
            for (i = 1; i <= rows; i++) print row[i]
            if (skips) print "\nSkipped:"
            for (i = 1; i <= skips; i++) print "  " skip[i]
            if (failures) print "\nFailed:"
            for (i = 1; i <= failures; i++) print "  " failure[i]
            printf "\n%d passed, %d failed, %d skipped\n", total_passed, total_failed, skips
            exit total_failed > 0
        }
    ' skip_log="$2" "$1" "$2"
}

# What some tests compare with, beside PyTorch but out of the environment that builds use.
ORACLES=(torchvision==0.28.0 timm==1.0.31 pillow==13.0.0)
ORACLES_FOLDER=$(dirname "$TORCH_VENV")/oracles-$TORCH_VERSION

# The marker is written last, as for PyTorch. Without a network the tests that need these are skipped.
install_oracles() {
    stage "Oracles of the tests"
    local marker=$ORACLES_FOLDER/wrn-dist-complete wanted=${ORACLES[*]}
    if [[ $(cat "$marker" 2>/dev/null || true) != "$wanted" ]]; then
        say "installing $wanted into $ORACLES_FOLDER"
        rm -rf "$ORACLES_FOLDER"
        if ! python3 -m pip install --no-deps --target "$ORACLES_FOLDER" "${ORACLES[@]}" >"$LOGS/oracles.log" 2>&1; then
            say "that failed (see $LOGS/oracles.log): tests that compare with them are skipped"
            rm -rf "$ORACLES_FOLDER"
            return
        fi
        echo "$wanted" >"$marker"
    fi
    export PYTHONPATH=$ORACLES_FOLDER${PYTHONPATH:+:$PYTHONPATH}
}

# A real Slurm, which tests start on this machine as root. Without it they are skipped.
SLURM_PACKAGES=(slurmctld slurmd slurm-client munge)

install_slurm() {
    stage "Slurm of the tests"
    local program absent=
    for program in munged slurmctld slurmd sbatch srun; do
        command -v "$program" >/dev/null || absent=$program
    done
    if ((EUID != 0)); then
        say "tests under Slurm take root: they are skipped"
    elif [[ -n $absent ]]; then
        say "installing ${SLURM_PACKAGES[*]}"
        # Run level 1 keeps Debian from starting the daemons.
        RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300 install --no-install-recommends \
            "${SLURM_PACKAGES[@]}" >"$LOGS/slurm.log" 2>&1 </dev/null ||
            say "that failed (see $LOGS/slurm.log): tests under Slurm are skipped"
    fi
}

set_up
install_oracles
install_slurm

stage "Build of the tests"
cargo test --release --workspace --no-run

stage "Tests${LIBTEST_OPTIONS:+, the long ones too}"
: >"$WRN_DIST_SKIP_LOG"
code=0
cargo test --color never --release --workspace --no-fail-fast "${LIBTEST_OPTIONS[@]}" 2>&1 |
    tee "$TEST_LOG" || code=$?
say "$((SECONDS - STAGE_BEGIN)) seconds of tests; output in $TEST_LOG"
end_stage

summary "$TEST_LOG" "$WRN_DIST_SKIP_LOG" || fail "there are failed tests; their output is above and in $TEST_LOG"
((code == 0)) || fail "cargo test ended with code $code although no test failed; see $TEST_LOG"
