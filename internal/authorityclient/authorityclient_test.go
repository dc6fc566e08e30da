package authorityclient

import (
	"errors"
	"testing"

	"github.com/cohort-tee/cohort/internal/cli/clitest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

func TestAuthorityBehindWhatWasSeenIsRefused(t *testing.T) {
	first, second := clitest.ApprovedTwice(t)
	tests := []struct {
		name            string
		authority, seen policy.Approved
		want            error
	}{
		{"nothing seen", first, policy.Approved{}, nil},
		{"the same", first, first, nil},
		{"newer than seen", second, first, nil},
		{"older than seen", first, second, wire.Behind},
	}
	for _, tt := range tests {
		if err := (Client{Approved: tt.authority}).Knows(tt.seen); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
}
