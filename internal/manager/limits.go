package manager

import (
	"time"

	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/retry"
)

// Limits are limits on the resources that clients and units can use. A zero field means its
// default; no limit can be turned off. Client addresses share Reading, InFlight, PerUnit and
// Polls: one address can use no more than the amount that is still free, so at most half.
type Limits struct {
	Clients     int // connections of users; above this the longest idle one is closed; default 10,000
	Reading     int // bytes of requests that the gateway buffers before it forwards them; default 64 MiB
	InFlight    int // concurrent requests through the gateway; default 10,000
	PerUnit     int // concurrent requests to one unit; default 2,000
	Polls       int // requests that wait for the next policy step; default 10,000
	Units       int // units in the registry; default 10,000
	Connections int // connections of units on the bus; default 20,000
	Copies      int // bytes of sealed sessions stored for one cluster; default 256 MiB
	PerAddress  int // open and one-off requests per second from one address; default 1,000, bursts of twice that; a tenth for requests in unknown sessions
}

func (l Limits) withDefaults() Limits {
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
	maxOpen          = 8 << 10   // open request; Cohort's clients send less than 2 KiB
	maxOneOff        = 260 << 10 // one-off request in one message; units accept less
	capsuleSize      = 7         // header of a one-off request, RFC 9458, section 4.3
	minCost          = 8 << 10   // least charge for a request that is being read
	maxPages         = 256       // concurrent requests for metrics, probes and other paths
	maxKnownSessions = 1 << 15   // sessions known to exist though the manager may have no copy
	maxReplay        = 16 << 10  // bytes of a streaming request that can be sent again
	chunkSize        = 32 << 10  // buffer for responses of units
	maxClusters      = 1_024     // clusters with units in the registry
	maxNames         = 64        // DNS names recorded for one unit
	maxNaming        = 64        // concurrent connections that read DNS names
	maxWaiting       = 1_024     // requests that wait for a connection to one unit
	maxAttempts      = 3         // units that the gateway tries for one request
	unitsHinted      = 8         // unit ids in one Cohort-Units field
)

// Times.
const (
	silence             = 4 * time.Second // a unit without a heartbeat for this long is removed
	addressInterval     = time.Second     // minimum between two address changes of a unit
	minNameWait         = time.Second     // after the first attempt to read a unit's names; doubles each time
	maxNameWait         = 30 * time.Second
	maintenanceInterval = time.Second      // between removals of silent units and expired copies
	warmUp              = 5 * time.Second  // within this time units reconnect to a restarted manager
	recallSlack         = time.Minute      // covers the delay until a cut link is detected, and clock differences
	connectWait         = 3 * time.Second  // TCP and TLS to a unit
	lostUnit            = 4 * time.Second  // without acknowledgement from a unit for this long, its connection is closed
	idleUnit            = 30 * time.Second // idle connection to a unit; the unit's own limit is longer
	headerWait          = 5 * time.Second  // for a client's TLS handshake and request header
	wholeWait           = 10 * time.Second // for a whole open request or one-off request
	readWait            = time.Minute      // for the next bytes of a request
	restWait            = time.Second      // for the rest of a request body after the response
	writeWait           = 30 * time.Second // for a client to accept the next bytes of a response
	idleWait            = 90 * time.Second // idle connection of a client
	endWait             = 10 * time.Second // for running requests at shutdown
)

// unitBackoff is the rest of a unit after a failed attempt.
var unitBackoff = retry.Backoff{First: 100 * time.Millisecond, Max: 5 * time.Second}

// clientPace returns the time limits for the gateway's clients.
func clientPace() limit.Pace { return limit.Pace{Read: readWait, Write: writeWait, Rest: restWait} }
