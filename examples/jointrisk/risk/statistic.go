package risk

import (
	"bytes"
	"io"
	"math"
	"math/big"
)

// LeastCell is the fewest customers a cell may speak of.
const LeastCell = 10

// bands are the least claims of each cell.
var bands = []int64{0, 1, 3}

// Statistic is what leaves the joiner: sums over the customers both sides have.
// All of it is whole numbers but the correlation, which is rounded once from exact
// sums, so the same tables give the same statistic whoever adds them up.
type Statistic struct {
	Customers   int64   `json:"customers"`    // that both have
	OnlyBank    int64   `json:"only_bank"`    // that the bank alone has
	OnlyInsurer int64   `json:"only_insurer"` // that the insurer alone has
	Cells       []Cell  `json:"cells"`
	Correlation float64 `json:"correlation"` // of days in arrears and claims; 0 where it is not defined
}

// Cell is the customers with at least so many claims, and fewer than the next
// cell's.
type Cell struct {
	Claims     int64 `json:"claims_from"`
	Suppressed bool  `json:"suppressed,omitempty"` // fewer than LeastCell customers: the rest is left out
	Customers  int64 `json:"customers,omitempty"`
	InArrears  int64 `json:"in_arrears,omitempty"`
	Balance    int64 `json:"balance,omitempty"` // cents
	Paid       int64 `json:"paid,omitempty"`    // cents
}

// sums is a statistic in the making.
type sums struct {
	statistic Statistic
	x, y      int64 // days in arrears, claims
	xx, yy    int64
	xy        int64
}

func newSums() *sums {
	s := &sums{}
	for _, claims := range bands {
		s.statistic.Cells = append(s.statistic.Cells, Cell{Claims: claims})
	}
	return s
}

// add counts a customer of both sides.
func (s *sums) add(bank, insurer Customer) {
	s.statistic.Customers++
	band := 0
	for i, least := range bands {
		if insurer.Count >= least {
			band = i
		}
	}
	c := &s.statistic.Cells[band]
	c.Customers++
	if bank.Count > 0 {
		c.InArrears++
	}
	c.Balance += bank.Amount
	c.Paid += insurer.Amount
	s.x += bank.Count
	s.y += insurer.Count
	s.xx += bank.Count * bank.Count
	s.yy += insurer.Count * insurer.Count
	s.xy += bank.Count * insurer.Count
}

// result suppresses small cells and rounds the correlation.
func (s *sums) result() Statistic {
	for i, c := range s.statistic.Cells {
		if c.Customers < LeastCell {
			s.statistic.Cells[i] = Cell{Claims: c.Claims, Suppressed: true}
		}
	}
	if s.statistic.Customers >= LeastCell {
		s.statistic.Correlation = s.correlation()
	}
	return s.statistic
}

// correlation is Pearson's, from exact sums: (n Σxy − Σx Σy) / √(n Σxx − Σx²) / √(n Σyy − Σy²).
func (s *sums) correlation() float64 {
	n := s.statistic.Customers
	spread := func(squares, sum int64) float64 { return math.Sqrt(minus(n, squares, sum, sum)) }
	below := spread(s.xx, s.x) * spread(s.yy, s.y)
	if below == 0 {
		return 0
	}
	return math.Round(minus(n, s.xy, s.x, s.y)/below*1e6) / 1e6
}

// minus is n·a − b·c, exact before it is rounded to a float.
func minus(n, a, b, c int64) float64 {
	left := new(big.Int).Mul(big.NewInt(n), big.NewInt(a))
	right := new(big.Int).Mul(big.NewInt(b), big.NewInt(c))
	f, _ := new(big.Float).SetInt(left.Sub(left, right)).Float64()
	return f
}

// Join merges the two streams of one run. It holds one record of each at a time
// and refuses both for one that is not of its form.
func Join(bank, insurer io.Reader) (Statistic, error) {
	left, err := newStream(Bank, bank)
	if err != nil {
		return Statistic{}, err
	}
	right, err := newStream(Insurer, insurer)
	if err != nil {
		return Statistic{}, err
	}
	s := newSums()
	if err := s.merge(left, right); err != nil {
		return Statistic{}, err
	}
	return s.result(), nil
}

// merge walks both streams in the order of their keys.
func (s *sums) merge(left, right *stream) error {
	inLeft, err := left.next()
	if err != nil {
		return err
	}
	inRight, err := right.next()
	for err == nil && (inLeft || inRight) {
		order := bytes.Compare(left.at.key(), right.at.key())
		switch {
		case !inRight || inLeft && order < 0:
			s.statistic.OnlyBank++
			inLeft, err = left.next()
		case !inLeft || order > 0:
			s.statistic.OnlyInsurer++
			inRight, err = right.next()
		default:
			s.add(left.at.customer(), right.at.customer())
			if inLeft, err = left.next(); err == nil {
				inRight, err = right.next()
			}
		}
	}
	return err
}

// Pooled is the statistic as one would compute it who held both tables.
func Pooled(bank, insurer Table) Statistic {
	s := newSums()
	for customer, b := range bank {
		if i, both := insurer[customer]; both {
			s.add(b, i)
		}
	}
	s.statistic.OnlyBank = int64(len(bank)) - s.statistic.Customers
	s.statistic.OnlyInsurer = int64(len(insurer)) - s.statistic.Customers
	return s.result()
}
