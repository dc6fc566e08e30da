package policyfile_test

import (
	"fmt"
	"os"

	"github.com/cohort-tee/cohort/policy/policyfile"
)

func read(name string) []byte {
	b, err := os.ReadFile(name)
	if err != nil {
		panic(err)
	}
	return b
}

// All faults of a file are returned at once.
func ExampleParse() {
	_, err := policyfile.Parse(read("testdata/vectors/policy/life-too-long.toml"))
	fmt.Println(err)
	// Output: policy: task.scoring.lifetime: value: got "24h1s", want "a duration from 3s to 24h0m0s"
}

// Only a change that tightens takes effect at once.
func ExampleCompare() {
	old, err := policyfile.Parse(read("../testdata/vectors/history/1.toml"))
	if err != nil {
		fmt.Println(err)
		return
	}
	next, err := policyfile.Parse(read("../testdata/vectors/history/2.toml"))
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, change := range policyfile.Compare(old, next) {
		fmt.Println(change)
	}
	// Output: ~ task.scoring.lifetime = "20m", was "30m" (tightens)
}
