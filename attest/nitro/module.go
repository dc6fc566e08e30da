//go:build linux

package nitro

import (
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

// Sizes in bytes that the driver of /dev/nsm allows (Linux, drivers/misc/nsm.c).
const (
	maxModuleRequest  = 0x1000
	maxModuleResponse = 0x3000
)

// module is the Nitro security module.
type module interface {
	// exchange sends a request and writes the response into a buffer. It returns the
	// size of the response.
	exchange(request, response []byte) (n int, err error)
	Close() error
}

// deviceModule is the module behind the file /dev/nsm.
type deviceModule struct{ *os.File }

func openModule() (module, error) {
	f, err := os.Open("/dev/nsm")
	if err != nil {
		return nil, err
	}
	return deviceModule{f}, nil
}

// nsmMessage is struct nsm_raw of linux/nsm.h: where the request is, and where the
// response belongs.
type nsmMessage struct {
	request, response syscall.Iovec
}

// nsmIoctl is NSM_IOCTL_RAW of linux/nsm.h: _IOWR(0x0a, 0, struct nsm_raw).
const nsmIoctl = 3<<30 | unsafe.Sizeof(nsmMessage{})<<16 | 0x0a<<8

// exchange implements [module] by one ioctl. The driver sets the length of the
// response.
func (d deviceModule) exchange(request, response []byte) (int, error) {
	var m nsmMessage
	m.request.Base, m.response.Base = &request[0], &response[0]
	m.request.SetLen(len(request))
	m.response.SetLen(len(response))
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, d.Fd(), nsmIoctl, uintptr(unsafe.Pointer(&m)))
	runtime.KeepAlive(d.File)
	if errno != 0 {
		return 0, os.NewSyscallError("ioctl on /dev/nsm", errno)
	}
	return int(m.response.Len), nil
}
