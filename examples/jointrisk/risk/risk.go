// Package risk is what the three programs of the example agree on: a bank and
// an insurer each keep a table of their own customers, and a joiner says how
// arrears at the one go with claims at the other, for the customers both have.
//
// Each holder folds its table into one record a customer and hands the records
// to the joiner alone, under keys hashed with a salt that the joiner draws for
// that one run ([Holder]). The joiner merges the two streams as they arrive, keeps
// sums and no record, and answers with the sums ([Join]); a cell of fewer than
// [LeastCell] customers is left out. [Pooled] is the same statistic computed
// plainly by somebody who holds both tables.
//
// The package knows nothing of Cohort: who may ask whom is decided by the group's
// certificates before a request arrives. It refuses tables and streams that are
// not of its form; it cannot know whether what they say is true.
package risk

import "fmt"

// Side is one of the two tables.
type Side string

// The two sides.
const (
	Bank    Side = "bank"    // one row a loan
	Insurer Side = "insurer" // one row a policy
)

// header is the first line of a side's table. The last two columns are whole
// numbers from 0 to maxValue.
var header = map[Side][]string{
	Bank:    {"customer", "loan", "balance", "arrears"}, // balance in cents, arrears in days
	Insurer: {"customer", "policy", "paid", "claims"},   // paid in cents
}

// Bounds of one row, so that sums over 10^7 customers and the products of the
// correlation stay within 64 bits.
const (
	maxValue    = 10_000_000_000
	maxCount    = 36_500 // arrears in days, claims
	maxCustomer = 64     // bytes of a customer's key
)

// Customer is what one side knows of one customer: the sum over his rows.
type Customer struct {
	Amount int64 // balance or paid, in cents
	Count  int64 // days in arrears, or claims
}

func (c Customer) plus(amount, count int64) (Customer, error) {
	c.Amount += amount
	c.Count += count
	if c.Amount > maxValue || c.Count > maxCount {
		return c, fmt.Errorf("sum of a customer: got %d and %d, want at most %d and %d", c.Amount, c.Count, int64(maxValue), maxCount)
	}
	return c, nil
}
