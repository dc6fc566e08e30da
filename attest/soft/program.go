//go:build linux

package soft

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/sys/unix"
)

// maxProgram bounds what is copied into memory for one program or agent.
const maxProgram = 1 << 30

// seals make a memory file immutable for ever, its seals included.
const seals = unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL

// image is a program that cannot change any more.
type image struct {
	file    *os.File
	digest  attest.Digest
	dynamic bool
}

// sealImage copies a program into a sealed memory file and measures the copy:
// whatever happens to the source afterwards, this is what will run.
func sealImage(source *os.File) (*image, error) {
	size, err := programSize(source)
	if err != nil {
		return nil, err
	}
	sealed, err := memoryFile("cohort-program")
	if err != nil {
		return nil, err
	}
	i, err := fillImage(sealed, io.NewSectionReader(source, 0, size))
	if err != nil {
		sealed.Close()
		return nil, err
	}
	return i, nil
}

func fillImage(sealed *os.File, source io.Reader) (*image, error) {
	if _, err := io.Copy(sealed, source); err != nil {
		return nil, fmt.Errorf("copying the program: %w", err)
	}
	if _, err := unix.FcntlInt(sealed.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, fmt.Errorf("sealing the copy of the program: %w", err)
	}
	digest, dynamic, err := inspect(sealed)
	if err != nil {
		return nil, err
	}
	return &image{file: sealed, digest: digest, dynamic: dynamic}, nil
}

// memoryFile makes an empty memory file that can be sealed and executed. Kernels
// before 6.3 do not know MFD_EXEC and do as if it were given.
func memoryFile(name string) (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, fmt.Errorf("making a memory file: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func programSize(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("looking at the program: %w", err)
	}
	if !info.Mode().IsRegular() {
		return 0, wire.Refuse(wire.BadRequest, "soft program: file", info.Mode().Type(), "a regular file")
	}
	if info.Size() > maxProgram {
		return 0, wire.Refuse(wire.TooLarge, "soft program: size in bytes", info.Size(), maxProgram)
	}
	return info.Size(), nil
}

// inspect hashes a program and states whether it names an interpreter, which is
// the dynamic linker that loads its shared libraries.
func inspect(f *os.File) (digest attest.Digest, dynamic bool, err error) {
	size, err := programSize(f)
	if err != nil {
		return digest, false, err
	}
	content := io.NewSectionReader(f, 0, size)
	if err := refuseScript(content); err != nil {
		return digest, false, err
	}
	program, err := elf.NewFile(content)
	if err != nil {
		return digest, false, wire.Refuse(wire.Malformed, "soft program: format", err, "an ELF program")
	}
	dynamic = slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
	h := sha256.New()
	if _, err := io.Copy(h, content); err != nil {
		return digest, false, fmt.Errorf("hashing the program: %w", err)
	}
	h.Sum(digest[:0])
	return digest, dynamic, nil
}

func refuseScript(content io.ReaderAt) error {
	start := make([]byte, 2)
	if _, err := content.ReadAt(start, 0); err == nil && bytes.Equal(start, []byte("#!")) {
		return wire.Refuse(wire.Malformed, "soft program: format", "a script (#!)",
			"an ELF program: the interpreter of a script would not be measured, so build a binary")
	}
	return nil
}

// Measure returns the measurement that the daemon will take of a program and its
// arguments, and whether it will state dynamic. agent is nil when there is none.
func Measure(program, agent *os.File, args []string) (attest.Measurement, bool, error) {
	s := Statement{Arguments: Arguments(args)}
	var err error
	if s.Program, s.Dynamic, err = inspect(program); err != nil {
		return attest.Measurement{}, false, err
	}
	if agent == nil {
		return s.Measurement(), s.Dynamic, nil
	}
	var dynamic bool
	if s.Agent, dynamic, err = inspect(agent); err != nil {
		return attest.Measurement{}, false, fmt.Errorf("measuring the agent: %w", err)
	}
	return s.Measurement(), s.Dynamic || dynamic, nil
}

// SealCopy copies a program into a memory file that cannot change any more, and
// measures the copy: for agents of other platforms that launch what they measure.
// The caller closes the copy.
func SealCopy(source *os.File) (sealed *os.File, digest attest.Digest, dynamic bool, err error) {
	i, err := sealImage(source)
	if err != nil {
		return nil, attest.Digest{}, false, err
	}
	return i.file, i.digest, i.dynamic, nil
}
