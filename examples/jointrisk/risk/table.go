package risk

import (
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
)

// Table is one side's customers by their key.
type Table map[string]Customer

// ReadTable reads a CSV table with the header of its side and adds up the rows of
// each customer. It refuses the whole table for one row that is not of its form.
func ReadTable(side Side, r io.Reader) (Table, error) {
	want, known := header[side]
	if !known {
		return nil, fmt.Errorf("table: side: got %q, want %q or %q", side, Bank, Insurer)
	}
	rows := csv.NewReader(r)
	rows.ReuseRecord = true
	first, err := rows.Read()
	if err != nil {
		return nil, fmt.Errorf("table: reading the header: %w", err)
	}
	if !slices.Equal(first, want) {
		return nil, fmt.Errorf("table: header: got %q, want %q", first, want)
	}
	t := make(Table)
	for {
		row, err := rows.Read()
		if err == io.EOF {
			return t, nil
		}
		if err == nil {
			err = t.add(row)
		}
		if err != nil {
			line, _ := rows.FieldPos(0)
			return nil, fmt.Errorf("table: line %d: %w", line, err)
		}
	}
}

// add folds one row into its customer.
func (t Table) add(row []string) error {
	if len(row[0]) == 0 || len(row[0]) > maxCustomer {
		return fmt.Errorf("customer: got %d bytes, want 1 to %d", len(row[0]), maxCustomer)
	}
	amount, err := whole(row[2], maxValue)
	if err != nil {
		return err
	}
	count, err := whole(row[3], maxCount)
	if err != nil {
		return err
	}
	sum, err := t[row[0]].plus(amount, count)
	if err != nil {
		return err
	}
	if _, known := t[row[0]]; known {
		t[row[0]] = sum
		return nil
	}
	t[string([]byte(row[0]))] = sum // the reader uses the row's memory again
	return nil
}

// whole reads a whole number from 0 to most.
func whole(s string, most int64) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > most {
		return 0, fmt.Errorf("value: got %q, want a whole number from 0 to %d", s, most)
	}
	return n, nil
}
