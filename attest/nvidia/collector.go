package nvidia

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Bounds on the program of a [Collector].
const (
	collectTime  = 30 * time.Second
	maxPrinted   = 1 << 20     // bytes; a GPU takes about 20 KB
	maxErrorText = 1 << 10     // bytes of its errors that are repeated
	goneTime     = time.Second // a killed program's children let go of its output
)

// Collector asks all GPUs of a machine through a program that prints their evidence,
// such as NVIDIA's `nvattest collect-evidence`, with which nothing of NVIDIA's needs to
// be linked. Beside a TEE it is used by [attest.WithDevices].
//
// The program runs where the collector does, so it belongs into what the TEE measures.
// What it prints is believed as little as the GPU itself: appraisal looks for the GPU's
// signature over the nonce.
type Collector struct{ command []string }

// NewCollector makes a collector that runs a program with arguments, and after them
// `--nonce` and the nonce in hexadecimal. It refuses with "not-this-device" a program
// that is not there.
func NewCollector(command ...string) (*Collector, error) {
	if len(command) == 0 {
		return nil, absent("no program that collects evidence")
	}
	if _, err := exec.LookPath(command[0]); err != nil {
		return nil, absent(err)
	}
	return &Collector{command}, nil
}

// Attest asks for reports whose nonce is the SHA-256 of the report data. It returns the
// first GPU's evidence with the others' as its devices, which [attest.WithDevices] puts
// side by side. It refuses with "not-this-device" when the program fails, finds no GPU,
// or takes more than 30 seconds.
func (c *Collector) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	nonce := sha256.Sum256(data[:])
	out, err := c.output(ctx, "--nonce", hex.EncodeToString(nonce[:]))
	if ctx.Err() != nil {
		return attest.Evidence{}, ctx.Err()
	}
	if err != nil {
		return attest.Evidence{}, absent(err)
	}
	return parseCollection(out)
}

// parseCollection reads what `nvattest collect-evidence` prints: the first GPU's
// evidence, with the others' as its devices. It refuses with "not-this-device" what is
// something else, states that it failed, or has no GPU.
func parseCollection(printed []byte) (attest.Evidence, error) {
	var p struct {
		Evidences []struct {
			Evidence    []byte `json:"evidence"`
			Certificate []byte `json:"certificate"` // the chain, PEM
		} `json:"evidences"`
		Code    int    `json:"result_code"`
		Message string `json:"result_message"`
	}
	if err := json.Unmarshal(printed, &p); err != nil {
		return attest.Evidence{}, absent(fmt.Errorf("output that is not JSON: %w", err))
	}
	if p.Code != 0 || len(p.Evidences) == 0 {
		return attest.Evidence{}, absent(fmt.Sprintf("%d GPUs, result %d %s", len(p.Evidences), p.Code, p.Message))
	}
	var all []attest.Evidence
	for _, gpu := range p.Evidences {
		all = append(all, attest.Evidence{Platform: attest.NvidiaGPU, Raw: gpu.Evidence, Endorsed: attest.Endorsements{roleChain: gpu.Certificate}})
	}
	first := all[0]
	first.Devices = all[1:]
	return first, nil
}

// output returns what the program prints.
func (c *Collector) output(ctx context.Context, more ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, collectTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.command[0], append(c.command[1:len(c.command):len(c.command)], more...)...)
	out, errorText := capped{most: maxPrinted, full: io.ErrShortWrite}, capped{most: maxErrorText}
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &errorText, goneTime
	err := cmd.Run()
	if len(out.kept) == out.most {
		return nil, fmt.Errorf("%s: %d bytes of output and more", c.command[0], out.most)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", c.command[0], err, bytes.TrimSpace(errorText.kept))
	}
	return out.kept, nil
}

// capped keeps the first bytes that are written to it.
type capped struct {
	most int
	full error // of a write beyond; nil drops what is beyond
	kept []byte
}

func (c *capped) Write(p []byte) (int, error) {
	room := c.most - len(c.kept)
	c.kept = append(c.kept, p[:min(len(p), room)]...)
	if len(p) > room {
		return len(p), c.full
	}
	return len(p), nil
}

func absent(got any) error {
	return wire.Refuse(wire.NotThisDevice, "nvidia: not this machine", got, "a GPU in confidential computing mode")
}
