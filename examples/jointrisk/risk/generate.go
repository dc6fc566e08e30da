package risk

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
)

// Generate writes a table of a side with so many rows. The same seed gives the
// same table, and the two sides of one seed share about half of their customers,
// whose arrears and claims go together a little. Nobody's data is in it.
func Generate(w io.Writer, side Side, seed uint64, rows int) error {
	columns, known := header[side]
	if !known {
		return fmt.Errorf("side: got %q, want %q or %q", side, Bank, Insurer)
	}
	out := bufio.NewWriterSize(w, 256<<10)
	fmt.Fprintln(out, strings.Join(columns, ","))
	// Customers 0 to 3n/4 are the bank's and n/4 to n the insurer's.
	n := uint64(max(rows, 4))
	stream, first := uint64(1), uint64(0)
	if side == Insurer {
		stream, first = 2, n/4
	}
	draw := rand.New(rand.NewPCG(seed, stream))
	for row := range rows {
		customer := first + draw.Uint64N(3*n/4)
		amount, count := values(draw, side, careless(seed, customer))
		fmt.Fprintf(out, "C%09d,%d,%d,%d\n", customer, row, amount, count)
	}
	return out.Flush()
}

// careless reports whether a customer is one of those both sides have trouble
// with: one in eight.
func careless(seed, customer uint64) bool {
	return rand.NewPCG(seed, customer).Uint64()%8 == 0
}

// values draws one row's amount in cents and its count.
func values(draw *rand.Rand, side Side, careless bool) (amount, count int64) {
	one := 20 // in so many has trouble
	if careless {
		one = 3
	}
	trouble := draw.IntN(one) == 0
	switch {
	case side == Bank && trouble:
		return 100_000 + draw.Int64N(5_000_000), 1 + draw.Int64N(180)
	case side == Bank:
		return 100_000 + draw.Int64N(5_000_000), 0
	case trouble:
		return 10_000 + draw.Int64N(900_000), 1 + draw.Int64N(4)
	}
	return 0, 0
}
