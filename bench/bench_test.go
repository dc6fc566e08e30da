package bench

import "testing"

func TestQuartiles(t *testing.T) {
	for _, row := range []struct {
		name   string
		values []float64
		want   [3]float64
	}{
		{"one", []float64{7}, [3]float64{7, 7, 7}},
		{"two", []float64{2, 1}, [3]float64{1, 1, 2}},
		{"five", []float64{5, 1, 4, 2, 3}, [3]float64{2, 3, 4}},
		{"an outlier", []float64{1, 1, 100, 1, 1}, [3]float64{1, 1, 1}},
	} {
		t.Run(row.name, func(t *testing.T) {
			low, median, high := Quartiles(row.values)
			if got := [3]float64{low, median, high}; got != row.want {
				t.Errorf("got %v, want %v", got, row.want)
			}
		})
	}
}
