#!/bin/sh
# Checks price.sh: sh test.sh
. ./price.sh
failed=0

check() {
    if [ "$2" = "$3" ]; then
        echo "ok      $1"
    else
        echo "FAILED  $1: expected $2, got $3"
        failed=1
    fi
}

check "three for 2.50 each" 750 "$(total 3 250)"
check "nothing costs nothing" 0 "$(total 0 250)"
check "ten per cent off" 180 "$(discount 200 10)"
exit $failed
