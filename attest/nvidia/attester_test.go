package nvidia_test

import (
	"context"
	"errors"
	"testing"

	"github.com/cohort-tee/cohort/attest/nvidia"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestNoGPU: where nothing reaches a GPU, that is said.
func TestNoGPU(t *testing.T) {
	if _, err := nvidia.NewAttester(nil); !errors.Is(err, wire.NotThisDevice) {
		t.Errorf("no way to a GPU: got %v, want %q", err, wire.NotThisDevice)
	}
	s := newScene()
	s.gpu.Error = errors.New("not supported")
	gpu, err := nvidia.NewAttester(s.gpu)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gpu.Attest(context.Background(), use); !errors.Is(err, wire.NotThisDevice) {
		t.Errorf("a GPU that fails: got %v, want %q", err, wire.NotThisDevice)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := gpu.Attest(ctx, use); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}
