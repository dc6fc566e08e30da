// Command generate writes the two tables of the example jointrisk, and with
// -pooled prints the statistic of two tables as one would compute it who held both.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cohort-tee/cohort/examples/jointrisk/risk"
)

func main() {
	dir := flag.String("dir", ".", "folder of bank.csv and insurer.csv")
	rows := flag.Int("rows", 1_000_000, "rows of each table")
	seed := flag.Uint64("seed", 1, "the same seed gives the same tables")
	pooled := flag.Bool("pooled", false, "compute the statistic of the tables that are there")
	flag.Parse()
	err := errors.New("rows: want 1 or more")
	switch {
	case *pooled:
		err = compute(*dir)
	case *rows > 0:
		err = errors.Join(write(*dir, risk.Bank, *seed, *rows), write(*dir, risk.Insurer, *seed, *rows))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

// file is where a side's table stands.
func file(dir string, side risk.Side) string { return filepath.Join(dir, string(side)+".csv") }

func write(dir string, side risk.Side, seed uint64, rows int) error {
	f, err := os.Create(file(dir, side))
	if err != nil {
		return err
	}
	return errors.Join(risk.Generate(f, side, seed, rows), f.Close())
}

func compute(dir string) error {
	bank, err := read(dir, risk.Bank)
	if err != nil {
		return err
	}
	insurer, err := read(dir, risk.Insurer)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(risk.Pooled(bank, insurer))
}

func read(dir string, side risk.Side) (risk.Table, error) {
	f, err := os.Open(file(dir, side))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return risk.ReadTable(side, f)
}
