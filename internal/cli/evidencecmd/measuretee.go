package evidencecmd

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/platforms"
	"github.com/cohort-tee/cohort/attest/snp"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/spf13/cobra"
)

// maxImage bounds what is measured: 1 GiB.
const maxImage = 1 << 30

// cpuSignatures are the models of QEMU, without their versions, which share a
// signature (CPUID leaf 1, EAX).
var cpuSignatures = map[string]uint32{
	"EPYC": 0x800f12, "EPYC-Rome": 0x830f10, "EPYC-Milan": 0xa00f11, "EPYC-Genoa": 0xa10f10, "EPYC-Turin": 0xb00f00,
}

// launchFlags are the flags of `cohort measure snp`.
type launchFlags struct {
	firmware, kernel, initrd, commandLine, cpu, hostData, fpu string
	vcpus                                                     int
	features                                                  uint64
}

func measureSNPCommand(a *frame.App) *cobra.Command {
	var f launchFlags
	cmd := &cobra.Command{
		Use:   "snp --firmware OVMF --vcpus N --cpu MODEL",
		Short: "Print the reference value of an SEV-SNP guest that QEMU launches",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			m, err := f.measure()
			if err != nil {
				return err
			}
			return emitReference(a, m)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.firmware, "firmware", "", "file of the firmware, OVMF")
	flags.StringVar(&f.kernel, "kernel", "", "file of the kernel, where the firmware checks its hash")
	flags.StringVar(&f.initrd, "initrd", "", "file of the initial ramdisk")
	flags.StringVar(&f.commandLine, "append", "", "command line of the kernel")
	flags.IntVar(&f.vcpus, "vcpus", 0, "number of virtual CPUs")
	flags.StringVar(&f.cpu, "cpu", "", "model of QEMU, such as EPYC-v4, or the signature as 0xHEX")
	flags.Uint64Var(&f.features, "features", 1, "SEV features of the virtual CPUs, as a number")
	flags.StringVar(&f.fpu, "fpu", "set", "set or unset: whether the host sets the FPU's registers before launch, as Linux 6.10 and later do")
	flags.StringVar(&f.hostData, "host-data", strings.Repeat("0", 64), "64 hexadecimal digits that the host sets at launch")
	for _, name := range []string{"firmware", "vcpus", "cpu"} {
		_ = cmd.MarkFlagRequired(name)
	}
	return cmd
}

func (f launchFlags) measure() (attest.Measurement, error) {
	var m attest.Measurement
	cpu, err := cpuSignature(f.cpu)
	if err != nil {
		return m, err
	}
	hostData, err := hex.DecodeString(f.hostData)
	switch {
	case err != nil || len(hostData) != 32:
		return m, frame.Usage("--host-data: got %q, want 64 hexadecimal digits", f.hostData)
	case f.fpu != "set" && f.fpu != "unset":
		return m, frame.Usage("--fpu: got %q, want set or unset", f.fpu)
	case f.kernel == "" && f.initrd+f.commandLine != "":
		return m, frame.Usage("--initrd and --append need --kernel")
	}
	l := snp.Launch{CommandLine: f.commandLine, VCPUs: f.vcpus, CPU: cpu, Features: f.features, FPU: f.fpu == "set"}
	for _, file := range []struct {
		path    string
		content *[]byte
	}{{f.firmware, &l.Firmware}, {f.kernel, &l.Kernel}, {f.initrd, &l.Initrd}} {
		if file.path == "" {
			continue
		}
		if *file.content, err = frame.ReadFile(file.path, maxImage); err != nil {
			return m, err
		}
	}
	launch, err := l.Digest()
	return attest.Measurement{Platform: attest.SNP, Registers: []attest.Register{{Name: "measurement", Value: launch}, {Name: "host-data", Value: hostData}}}, err
}

// cpuSignature reads a model's name, with or without a version, or a number.
func cpuSignature(text string) (uint32, error) {
	if n, err := strconv.ParseUint(text, 0, 32); err == nil {
		return uint32(n), nil
	}
	name := text
	if i := strings.LastIndex(text, "-v"); i > 0 {
		name = text[:i]
	}
	signature, ok := cpuSignatures[name]
	if !ok {
		return 0, frame.Usage("--cpu: got %q, want EPYC, EPYC-Rome, EPYC-Milan, EPYC-Genoa, EPYC-Turin, or 0xHEX", text)
	}
	return signature, nil
}

// measureImageCommands are a command for each platform that measures images.
func measureImageCommands(a *frame.App) []*cobra.Command {
	commands := []*cobra.Command{measureSNPCommand(a)}
	for _, p := range platforms.Supported() {
		if p.MeasureImage != nil {
			commands = append(commands, measureImageCommand(a, p))
		}
	}
	return commands
}

func measureImageCommand(a *frame.App, p attest.PlatformInfo) *cobra.Command {
	return &cobra.Command{
		Use:   string(p.Platform) + " FILE",
		Short: "Print the reference value of an image of " + p.Title,
		Long:  "Print the reference value of an image of " + p.Title + ".\nFILE is " + p.Image + ".",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			content, err := frame.ReadFile(args[0], maxImage)
			if err != nil {
				return err
			}
			m, notes, err := p.MeasureImage(content)
			if err != nil {
				return err
			}
			for _, note := range notes {
				a.Notef("note: %s", note)
			}
			return emitReference(a, m)
		},
	}
}

// emitReference prints a measurement as a line of policy.
func emitReference(a *frame.App, m attest.Measurement) error {
	line := referenceLine(m)
	return a.PrintResult("measure", map[string]any{"platform": m.Platform, "reference": line}, line+"\n")
}

// referenceLine is a hardware platform's measurement as policy writes it.
func referenceLine(m attest.Measurement) string {
	p, _ := platforms.Supported().Lookup(m.Platform)
	forms := map[string]attest.Form{}
	for _, r := range p.Registers {
		forms[r.Name] = r.Form
	}
	fields := []string{fmt.Sprintf("platform = %q", m.Platform)}
	var boot, open []string // PCRs of a TPM, and registers that any value matches
	for _, r := range m.Registers {
		text := strconv.Quote(hex.EncodeToString(r.Value))
		if r.Any {
			open = append(open, strconv.Quote(r.Name))
			continue
		}
		switch forms[r.Name] {
		case attest.FormPCR:
			boot = append(boot, fmt.Sprintf("%s = \"sha256:%x\"", strings.TrimPrefix(r.Name, attest.PCRPrefix), r.Value))
			continue
		case attest.FormDigest, attest.FormNeededDigest:
			text = fmt.Sprintf("\"sha256:%x\"", r.Value)
		case attest.FormCode384, attest.FormExtended384:
			text = fmt.Sprintf("\"sha384:%x\"", r.Value)
		case attest.FormNumber16:
			text = strconv.Itoa(int(r.Value[0])<<8 | int(r.Value[1]))
		}
		fields = append(fields, r.Name+" = "+text)
	}
	if len(open) > 0 {
		fields = append(fields, "any = ["+strings.Join(open, ", ")+"]")
	}
	if len(boot) > 0 {
		fields = append(fields, "boot = { "+strings.Join(boot, ", ")+" }")
	}
	return "{ " + strings.Join(fields, ", ") + " }"
}
