#!/bin/sh
# fuzz.sh TIME runs every fuzz target of the module for TIME each (as go test's
# -fuzztime takes it). It goes on after a failure and exits 1 if there was one.
set -u

time=${1:?usage: fuzz.sh TIME}
failed=0
for file in $(grep -rl --include='*_test.go' '^func Fuzz' . | sort); do
	dir=$(dirname "$file")
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file"); do
		echo "== $dir $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$dir" || failed=1
	done
done
exit $failed
