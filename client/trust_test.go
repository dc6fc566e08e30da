package client_test

import (
	"testing"
)

func TestFetchTrust(t *testing.T) {
	w := newWorld(t, "1", "2")
	trust := w.fetch(nil)
	if got := len(ids(trust)); got != 2 {
		t.Errorf("got %v, want both releases", ids(trust))
	}
	c := w.client(w.replicas(1, "1")...)
	get(t, c, "ok")
	get(t, c, "ok")
	t.Logf("%+v", c.Stats())
}
