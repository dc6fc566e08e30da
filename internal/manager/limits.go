package manager

import (
	"time"

	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/retry"
)

// Limits bound what strangers and units can ask of a manager. A zero field is
// its default; none can be switched off. Of Reading, InFlight, PerUnit and Polls one
// address has no more than what is free: alone, half.
type Limits struct {
	Clients     int // connections of users; beyond, the one that waits longest is closed; default 10,000
	Reading     int // bytes of requests that the gateway reads and keeps before it passes them on; default 64 MiB
	InFlight    int // requests at once through the gateway; default 10,000
	PerUnit     int // of these to one unit; default 2,000
	Polls       int // requests that wait for the next step of policy; default 10,000
	Units       int // that the registry knows; default 10,000
	Connections int // of units on the bus; default 20,000
	Copies      int // bytes of sealed sessions kept for one cluster; default 256 MiB
	PerAddress  int // open and one-off requests a second from one address; default 1,000, bursts of twice that; a tenth of it in sessions that the manager does not know
}

func (l Limits) orDefault() Limits {
	for _, field := range []struct {
		value     *int
		otherwise int
	}{{&l.Clients, 10_000}, {&l.Reading, 64 << 20}, {&l.InFlight, 10_000}, {&l.PerUnit, 2_000}, {&l.Polls, 10_000}, {&l.Units, 10_000}, {&l.Connections, 20_000}, {&l.Copies, 256 << 20}, {&l.PerAddress, 1_000}} {
		if *field.value <= 0 {
			*field.value = field.otherwise
		}
	}
	return l
}

// Sizes in bytes and counts.
const (
	maxOpen      = 8 << 10   // an open request is below 2 KiB
	maxOneOff    = 260 << 10 // a one-off request in one piece; a unit takes less
	capsuleSize  = 7         // what any one-off request begins with, RFC 9458, section 4.3
	minCost      = 8 << 10   // what a request counts for while it is read
	maxPages     = 256       // metrics, probes and refusals of other paths at once
	maxVouched   = 1 << 15   // sessions that only units know
	maxReplay    = 16 << 10  // of a request that streams, kept until a unit answers
	chunkSize    = 32 << 10  // read from a unit before it is passed on
	batchSize    = 64 << 10  // pushed without waiting for more
	maxClusters  = 1_024     // with units, or with copies
	maxNames     = 64        // DNS names of one unit that are kept
	maxNaming    = 64        // units asked for their names at a time
	maxWaiting   = 1_024     // requests that wait to look for a connection to one unit
	maxAttempts  = 3         // units tried for one request
	unitsHinted  = 8         // ids in one Cohort-Units field
	rangeSize    = 1 << 16   // numbers given to a unit at a time
	rangeReserve = 1 << 32   // numbers reserved by one write to disk
)

// Times.
const (
	batchGap      = time.Millisecond // between two pushes; what is sealed meanwhile goes together
	silence       = 4 * time.Second  // a unit of which nothing was heard for so long is gone
	settleEvery   = time.Second      // a unit may change its address
	nameAgain     = time.Second      // a unit that could not be asked for its names is asked again, then after twice that
	nameMost      = 30 * time.Second
	bequeathEvery = 30 * time.Second // a unit that was away for longer is pushed what it inherits again
	tidyEvery     = time.Second      // silent units and expired copies are looked for
	moveEvery     = 3 * time.Second  // other numbers, because another manager claims the same
	warmUp        = 5 * time.Second  // units find a restarted manager within this
	copyLife      = 2 * time.Hour    // no session lives longer
	recallSlack   = time.Minute      // how long a link may be cut before that is seen, and clocks may differ
	connectWait   = 3 * time.Second  // TCP and TLS to a unit
	lostUnit      = 4 * time.Second  // a connection on which nothing arrives is given up
	idleUnit      = 30 * time.Second // a kept-alive connection to a unit; the unit's own limit is longer
	headerWait    = 5 * time.Second  // TLS handshake and request header of a client
	wholeWait     = 10 * time.Second // a whole open request, or one-off request in one piece
	readWait      = time.Minute      // the next bytes of a request
	restWait      = time.Second      // what is left of a request that was refused or answered
	writeWait     = 30 * time.Second // a client takes the next bytes of an answer
	idleWait      = 90 * time.Second // a kept-alive connection of a client
	endWait       = 10 * time.Second // requests under way at shutdown
)

// unitBackoff is how long a unit that cannot be reached gets no requests.
var unitBackoff = retry.Backoff{First: 100 * time.Millisecond, Most: 5 * time.Second}

// pace is that of the gateway's clients.
func pace() limit.Pace { return limit.Pace{Read: readWait, Write: writeWait, Rest: restWait} }
