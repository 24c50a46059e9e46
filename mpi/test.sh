#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# mpi/test.sh BUILD MPI...
#
# Runs what `make test-mpi` has built, with each MPI that is named: the tests on 1, 2, 3, 4 and 7 processes, runs
# in which a process dies, and the training of the digits on 1 to 4 processes. Ends with "N passed, N failed".
# RANKS='2 3' in the environment takes other numbers of processes, BNORM_TEST_QUICK=1 makes fewer repetitions.
set -euo pipefail

build=$1
shift
passed=0
failed=0
limit=${BNORM_MPI_LIMIT:-600} # seconds for one run

count() { # STATUS NAME
    if [ "$1" -eq 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED  $2"
    fi
}

bits() { # MPIEXEC PROGRAMS: the tests of bits and errors
    local ranks output status summary
    for ranks in ${RANKS:-1 2 3 4 7}; do
        status=0
        output=$(timeout -k 5 "$limit" "$1" -n "$ranks" "$2/bnorm-mpi-tests" 2>&1) || status=$?
        summary=$(sed -n "s/^$ranks ranks: \([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p" <<<"$output")
        if [ -z "$summary" ] || { [ "$status" -ne 0 ] && [ "${summary#* }" -eq 0 ]; }; then
            printf '%s\n' "$output" | tail -n 20
            [ "$status" -ne 124 ] || echo "no end after $limit s (BNORM_MPI_LIMIT sets another limit)"
            count 1 "the run on $ranks processes, with status $status"
            continue
        fi
        passed=$((passed + ${summary% *}))
        failed=$((failed + ${summary#* }))
        [ "$status" -eq 0 ] || printf '%s\n' "$output"
        echo "bits and errors on $ranks: ${summary% *} passed, ${summary#* } failed"
    done
}

deaths() { # MPIEXEC PROGRAMS: one process ends in the middle; the others wait for it, and mpiexec must end them
    local how ranks status output died began
    for how in exit kill; do
        for ranks in 1 2 4; do
            status=0
            began=$SECONDS
            output=$(timeout -k 5 60 "$1" -n "$ranks" "$2/bnorm-mpi-tests" --die "$how" 2>&1) || status=$?
            died=$(grep -c "rank $((ranks - 1)) dies" <<<"$output" || true)
            count $((died == 0 || status == 0 || SECONDS - began >= 60)) \
                "the end by $how of one of $ranks processes, status $status"
            echo "one of $ranks ended by $how: the run ended with status $status"
        done
    done
}

digits() { # MPIEXEC PROGRAMS: the same weights however many processes train
    local ranks hash status first='' steps=(--steps 36)
    [ -z "${BNORM_TEST_QUICK:-}" ] || steps=(--steps 4)
    for ranks in 1 2 3 4; do
        hash=$(timeout -k 5 "$limit" "$1" -n "$ranks" "$2/digits-mpi" "${steps[@]}" 2>&1 |
            sed -n 's/^hash of all weights: //p') || hash=
        first=${first:-$hash}
        status=0
        [ -n "$hash" ] && [ "$hash" = "$first" ] || status=1
        count "$status" "digits on $ranks processes: weights ${hash:-unknown}, on one ${first:-unknown}"
        echo "digits on $ranks: weights $hash"
    done
}

for mpi; do
    mpiexec=mpiexec.$mpi
    programs=$build/$mpi
    if [ "$mpi" = default ]; then
        mpiexec=mpiexec
        programs=$build
    fi
    printf '\n%s: ' "$mpi"
    "$mpiexec" -n 1 "$programs/bnorm-mpi-tests" --version
    bits "$mpiexec" "$programs"
    deaths "$mpiexec" "$programs"
    digits "$mpiexec" "$programs"
done

printf '\n%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
