package risk

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// tables generates both sides of one seed.
func tables(t testing.TB, seed uint64, rows int) (bank, insurer Table) {
	t.Helper()
	read := func(side Side) Table {
		var b bytes.Buffer
		if err := Generate(&b, side, seed, rows); err != nil {
			t.Fatal(err)
		}
		table, err := ReadTable(side, &b)
		if err != nil {
			t.Fatal(err)
		}
		return table
	}
	return read(Bank), read(Insurer)
}

func TestJoinIsPooled(t *testing.T) {
	for _, rows := range []int{1, 10, 1000, 20_000} {
		for seed := range uint64(5) {
			bank, insurer := tables(t, seed, rows)
			salt := [SaltSize]byte{byte(seed), byte(rows)}
			got, err := Join(bytes.NewReader(bank.Records(salt)), bytes.NewReader(insurer.Records(salt)))
			if err != nil {
				t.Fatalf("%d rows, seed %d: %v", rows, seed, err)
			}
			if want := Pooled(bank, insurer); !reflect.DeepEqual(got, want) {
				t.Errorf("%d rows, seed %d: got %+v, want %+v", rows, seed, got, want)
			}
		}
	}
}

// TestKnownStatistic is small enough to do on paper: n = 13, Σx = 15, Σy = 6,
// Σxx = 87, Σyy = 6, Σxy = 6, so −12 / √906 / √42 = −0.061517.
func TestKnownStatistic(t *testing.T) {
	bank, insurer := Table{"only here": {5, 5}}, Table{"only there": {7, 7}}
	for i := range 12 {
		key := strconv.Itoa(i)
		bank[key] = Customer{Amount: 100, Count: int64(i % 2)}
		insurer[key] = Customer{Amount: 10, Count: int64(i % 2)}
	}
	bank["13"], insurer["13"] = Customer{1000, 9}, Customer{500, 0}
	got := Pooled(bank, insurer)
	want := Statistic{Customers: 13, OnlyBank: 1, OnlyInsurer: 1, Correlation: -0.061517,
		Cells: []Cell{{Claims: 0, Suppressed: true}, {Claims: 1, Suppressed: true}, {Claims: 3, Suppressed: true}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for i := range 10 {
		bank["more"+strconv.Itoa(i)], insurer["more"+strconv.Itoa(i)] = Customer{1, 0}, Customer{1, 0}
	}
	zero := Pooled(bank, insurer).Cells[0]
	if want := (Cell{Customers: 17, InArrears: 1, Balance: 6*100 + 1000 + 10, Paid: 6*10 + 500 + 10}); zero != want {
		t.Errorf("cell of no claims: got %+v, want %+v", zero, want)
	}
}

func TestSaltHidesCustomers(t *testing.T) {
	table := Table{"C000000001": {1, 1}, "C000000002": {2, 2}}
	one, other := table.Records([SaltSize]byte{1}), table.Records([SaltSize]byte{2})
	if bytes.Contains(one, []byte("C00000000")) {
		t.Error("a customer's key stands in the records")
	}
	for at := 8; at < len(one); at += recordSize {
		if bytes.Contains(other, one[at:at+keySize]) {
			t.Error("the same customer has the same key under another salt")
		}
	}
}

func TestTableRefuses(t *testing.T) {
	const head = "customer,loan,balance,arrears\n"
	tests := []struct{ name, csv, want string }{
		{"empty", "", "header"},
		{"the other side's", "customer,policy,paid,claims\n", "header"},
		{"no customer", head + ",1,2,3\n", "customer"},
		{"long customer", head + strings.Repeat("x", maxCustomer+1) + ",1,2,3\n", "customer"},
		{"a column short", head + "a,1,2\n", "wrong number of fields"},
		{"negative", head + "a,1,-2,3\n", "whole number"},
		{"fraction", head + "a,1,2.5,3\n", "whole number"},
		{"too large", head + "a,1,10000000001,3\n", "whole number"},
		{"sum too large", head + "a,1,10000000000,3\na,2,1,3\n", "sum of a customer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ReadTable(Bank, strings.NewReader(tt.csv))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v and %v, want an error about %q", got, err, tt.want)
			}
		})
	}
	if _, err := ReadTable("broker", strings.NewReader(head)); err == nil {
		t.Error("got a table of an unknown side")
	}
}

func TestJoinRefuses(t *testing.T) {
	good := Table{"a": {1, 1}, "b": {2, 2}, "c": {3, 3}}.Records([SaltSize]byte{})
	edit := func(f func([]byte) []byte) []byte { return f(bytes.Clone(good)) }
	tests := map[string][]byte{
		"nothing":     nil,
		"short count": good[:7],
		"cut off":     good[:len(good)-1],
		"one missing": good[:len(good)-recordSize],
		"one more":    edit(func(b []byte) []byte { return append(b, 0) }),
		"huge count":  edit(func(b []byte) []byte { binary.BigEndian.PutUint64(b, maxRecords+1); return b }),
		"twice":       edit(func(b []byte) []byte { copy(b[8+recordSize:], b[8:8+recordSize]); return b }),
		"negative":    edit(func(b []byte) []byte { b[8+keySize] = 0x80; return b }),
		"too large":   edit(func(b []byte) []byte { b[8+keySize] = 0x7f; return b }),
		"many claims": edit(func(b []byte) []byte { b[8+recordSize-6] = 1; return b }),
	}
	for name, bad := range tests {
		t.Run(name, func(t *testing.T) {
			if s, err := Join(bytes.NewReader(bad), bytes.NewReader(good)); err == nil {
				t.Errorf("as the bank's: got %+v", s)
			}
			if s, err := Join(bytes.NewReader(good), bytes.NewReader(bad)); err == nil {
				t.Errorf("as the insurer's: got %+v", s)
			}
		})
	}
}

func TestServed(t *testing.T) {
	bank, insurer := tables(t, 7, 5000)
	left, right := httptest.NewServer(Holder(Bank, bank)), httptest.NewServer(Holder(Insurer, insurer))
	defer left.Close()
	defer right.Close()
	joiner := httptest.NewServer(Joiner(left.URL, right.URL))
	defer joiner.Close()

	answer, err := http.Get(joiner.URL + "/statistic")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var got Statistic
	if err := json.NewDecoder(answer.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if want := Pooled(bank, insurer); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}

	right.Close()
	refused, err := http.Get(joiner.URL + "/statistic")
	if err != nil {
		t.Fatal(err)
	}
	defer refused.Body.Close()
	if refused.StatusCode != http.StatusBadGateway {
		t.Errorf("without the insurer: got %s, want 502", refused.Status)
	}
	short, err := http.Get(left.URL + "/records?salt=00")
	if err != nil {
		t.Fatal(err)
	}
	defer short.Body.Close()
	if short.StatusCode != http.StatusBadRequest {
		t.Errorf("a short salt: got %s, want 400", short.Status)
	}
}

func FuzzReadTable(f *testing.F) {
	f.Add("customer,loan,balance,arrears\na,1,2,3\n")
	f.Fuzz(func(t *testing.T, s string) {
		table, err := ReadTable(Bank, strings.NewReader(s))
		if err != nil && table != nil {
			t.Error("a table beside an error")
		}
		for customer, c := range table {
			if customer == "" || c.Amount < 0 || c.Amount > maxValue || c.Count < 0 || c.Count > maxCount {
				t.Errorf("got customer %q with %+v", customer, c)
			}
		}
	})
}

func FuzzJoin(f *testing.F) {
	f.Add(Table{"a": {1, 1}}.Records([SaltSize]byte{}))
	good := Table{"a": {1, 1}, "b": {2, 2}}.Records([SaltSize]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Join(bytes.NewReader(b), bytes.NewReader(good))
		if err == nil && s.Customers+s.OnlyInsurer != 2 {
			t.Errorf("got %+v, want both of the insurer's customers counted", s)
		}
	})
}

// BenchmarkStatistic puts the joined computation beside the plain one on tables of
// a million rows; reading the tables is in neither.
func BenchmarkStatistic(b *testing.B) {
	bank, insurer := tables(b, 1, 1_000_000)
	b.Run("pooled", func(b *testing.B) {
		for b.Loop() {
			Pooled(bank, insurer)
		}
	})
	b.Run("joined", func(b *testing.B) {
		for b.Loop() {
			salt := [SaltSize]byte{1}
			if _, err := Join(bytes.NewReader(bank.Records(salt)), bytes.NewReader(insurer.Records(salt))); err != nil {
				b.Fatal(err)
			}
		}
	})
}
