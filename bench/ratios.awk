# Prints what bench.Compare reports, one line for each ratio. Fails when a
# benchmark did.
/^pkg:/ { sub(/.*\/cohort\//, "", $2); package = $2 }
/^(FAIL|---|panic)/ { print; failed = 1 }
/^Benchmark/ {
	name = package " " substr($1, 10)
	sub(/-[0-9]+$/, "", name)
	delete value
	for (i = 3; i < NF; i += 2) value[$(i+1)] = $i
	for (i = 4; i <= NF; i += 2) {
		split($i, of, "/")
		if ((of[1] "-µs") in value && of[2] != "")
			printf "%-28s %-36s %7.3f ±%2.0f%%  %10s µs beside %s µs\n", name, $i, value[$i], value[of[1] "-±%"], value[of[1] "-µs"], value[of[2] "-µs"]
		else if ($i !~ /(^[^\/]*-µs|-±%|^ns\/op)$/)
			printf "%-28s %-36s %7s\n", name, $i, value[$i]
	}
}
END { exit failed }
