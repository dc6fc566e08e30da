package soft

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// pair returns a device and the daemon's end of its connection, which the test uses.
func pair(t *testing.T) (*Device, *net.UnixConn) {
	t.Helper()
	near, far, err := devicePair()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := connOf(far)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); conn.Close() })
	return &Device{conn: conn}, near
}

func TestAnswerToACallThatWasGivenUp(t *testing.T) {
	device, daemon := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		var first, second call
		receiveNoFiles(daemon, &first)
		cancel()
		receiveNoFiles(daemon, &second)
		sendMessage(daemon, deviceResponse{Number: first.Number, Data: []byte("first")})
		sendMessage(daemon, deviceResponse{Number: second.Number, Data: []byte("second")})
	}()
	if _, err := device.Attest(ctx, attest.ReportData{1}); err != context.Canceled {
		t.Fatalf("got %v, want %v", err, context.Canceled)
	}
	evidence, err := device.Attest(t.Context(), attest.ReportData{2})
	if err != nil || string(evidence.Raw) != "second" {
		t.Errorf("got %q, %v, want the second answer", evidence.Raw, err)
	}
}

func TestDaemonThatIsGone(t *testing.T) {
	device, daemon := pair(t)
	daemon.Close()
	if _, err := device.Attest(t.Context(), attest.ReportData{1}); !errors.Is(err, wire.NotThisDevice) {
		t.Errorf("got %v, want %v", err, wire.NotThisDevice)
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	for name, reply := range map[string]func(*net.UnixConn){
		"another message": func(c *net.UnixConn) { sendMessage(c, welcome{}) },
		"trailing bytes":  func(c *net.UnixConn) { c.Write([]byte(`{"number":1}{}`)) },
		"no JSON":         func(c *net.UnixConn) { c.Write([]byte("x")) },
		"a descriptor":    func(c *net.UnixConn) { sendMessage(c, deviceResponse{Number: 1}, os.Stdin) },
	} {
		t.Run(name, func(t *testing.T) {
			device, daemon := pair(t)
			reply(daemon)
			if _, err := device.Attest(t.Context(), attest.ReportData{1}); !errors.Is(err, wire.Malformed) {
				t.Errorf("got %v, want %v", err, wire.Malformed)
			}
		})
	}
}

func TestTooLargeACall(t *testing.T) {
	device, _ := pair(t)
	if _, err := device.Unseal(t.Context(), make([]byte, maxMessage)); !errors.Is(err, wire.TooLarge) {
		t.Errorf("got %v, want %v", err, wire.TooLarge)
	}
}

func TestDaemonRefusesCalls(t *testing.T) {
	c := &child{statement: goodStatement()}
	k := keys{attestation: newKey(t), sealing: newSealingKey()}
	for _, row := range []struct {
		name  string
		asked call
		want  wire.Reason
	}{
		{"no operation", call{}, wire.BadRequest},
		{"another operation", call{Op: "launch"}, wire.BadRequest},
		{"short report data", call{Op: opAttest, Data: make([]byte, 63)}, wire.BadRequest},
		{"long report data", call{Op: opAttest, Data: make([]byte, 65)}, wire.BadRequest},
		{"no reference value", call{Op: opSeal, To: [][]byte{{1}}}, wire.Malformed},
		{"large secret", call{Op: opSeal, Data: make([]byte, wire.MaxSealed+1)}, wire.TooLarge},
		{"nothing sealed", call{Op: opUnseal}, wire.Malformed},
	} {
		t.Run(row.name, func(t *testing.T) {
			if data, err := c.perform(k, row.asked); !errors.Is(err, row.want) || data != nil {
				t.Errorf("got %x, %v, want %v", data, err, row.want)
			}
		})
	}
}

func TestProgramWithoutAnAgent(t *testing.T) {
	device, _ := pair(t)
	if _, err := device.Program(); !errors.Is(err, wire.NotFound) {
		t.Errorf("got %v, want %v", err, wire.NotFound)
	}
}

func TestLargestSecretGoesThrough(t *testing.T) {
	device, daemon := pair(t)
	c := &child{statement: goodStatement(), device: daemon}
	go c.serveDevice(keys{sealing: newSealingKey()})
	secret := make([]byte, wire.MaxSealed)
	sealed, err := device.Seal(t.Context(), secret, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := device.Unseal(t.Context(), sealed); err != nil || len(got) != len(secret) {
		t.Errorf("got %d bytes, %v, want %d", len(got), err, len(secret))
	}
}
