package attest

import "testing"

func TestListAccepts(t *testing.T) {
	tests := []struct {
		name string
		list List
		want bool
	}{
		{"zero", List{}, false},
		{"named", List{Values: [][]byte{{1}, {2}}}, true},
		{"not named", List{Values: [][]byte{{1}, {2, 0}}}, false},
		{"any", List{Any: true}, true},
	}
	for _, tt := range tests {
		if got := tt.list.Accepts([]byte{2}); got != tt.want {
			t.Errorf("%s: accepts = %v, want %v", tt.name, got, tt.want)
		}
	}
}
