/*
 * The trusted channel with a hostile manager: one session of one client, unit A
 * that opened it, and another unit: B of the same release, or, with SUCCESSOR, of
 * a release that continues that one. The manager has every byte that was ever sent
 * and delivers any of it to any party, at any time and any number of times. It also
 * restarts units, sets the clock that a unit's time begins with, makes it run at
 * any speed, fills the units' tables, and sends the client any hint. Cryptography
 * is perfect here: nothing is opened without its key or accepted with another
 * message's. windows.pml models one call and its windows in more detail. README.md
 * explains the parts, and lists what breaks when the macro of a protection is
 * defined.
 */

#define A 0
#define B 1
#define UNITS 2

#ifdef SUCCESSOR
#define NEXT(u) (u == B)
#else
#define NEXT(u) 0
#endif

/* Keys, as bits. A release has strict and follow keys; K0 are the first ones. */
#define STRICT0 1
#define FOLLOW0 2
#define STRICT1 4
#define FOLLOW1 8
#define OWN2    16      /* the successor's own follow key */
#define K0 (STRICT0|FOLLOW0)
#define K1 (STRICT1|FOLLOW1)

/* State of the session in a unit's table. */
#define NONE 0
#define OPEN 1
#define DROPPED 2       /* its ring key was erased, and the secret with it */
#define CLOSED 3

/* Times: a request's not after, the session's expiry. */
#define NOTAFTER 1
#define EXPIRY 3

/* Attempts: two of one call that is not safe, one of a call that is. */
#define FIRST 0
#define SECOND 1
#define SAFE 2
#define ATTEMPTS 3

bit  pinned;            /* to code; else opened by the task's name */
byte copies;            /* keys under which the manager has a sealed copy */
bit  rolled;            /* the authority's ring */

byte id[UNITS];         /* names one start of one unit; 0 is no unit */
byte table[UNITS];
byte window[UNITS];     /* attempts seen, as bits */
byte held[UNITS];       /* keys */
byte time[UNITS];       /* a unit's own: the wall clock at its start, plus the time passed since */
bit  gone[UNITS];       /* K0 was to be erased here */
byte starts;

byte target[ATTEMPTS];  /* unit id that an attempt is bound to; 0: to no unit */
bit  sent[ATTEMPTS];
bit  refused[ATTEMPTS]; /* its unit responded, authenticated, that it was not executed */
bit  answered[ATTEMPTS];
bit  done;              /* the client has its response to the first */
byte runs;              /* executions of the call that is not safe */
byte ranSafe;           /* ids of the units that executed the safe one, as bits */
byte closedBy;          /* id of a unit that confirmed the close; 0: none */

inline forget(u) { table[u] = NONE; window[u] = 0 }

/*
 * The protections. Each macro removes one.
 */

#ifdef NO_CLOCK         /* a unit's time goes back with its host's clock */
#define PASS(u, t) time[u] = t
#else
#define PASS(u, t) time[u] = (t > time[u] -> t : time[u])
#endif

#ifdef DROP_EARLY       /* any entry yields when the table is full */
#define YIELDS(u) 1
#else                   /* untouched, or past the latest time of the numbers taken */
#define YIELDS(u) (window[u] == 0 && UNUSED(u) || time[u] > NOTAFTER)
#endif

#ifdef RECORD_EARLY     /* so does the record of a closed session */
#define UNUSED(u) 1
#else                   /* it stays until all requests sent before the close are late */
#define UNUSED(u) (table[u] != CLOSED)
#endif

#ifdef NO_TARGET        /* a unit executes requests bound to another */
#define FOR(u, a) 1
#else
#define FOR(u, a) (target[a] == 0 || target[a] == id[u])
#endif

#ifdef NO_WINDOW        /* no replay window */
#define FRESH(u, a) 1
#else
#define FRESH(u, a) (!(window[u] & (1 << a)))
#endif

#ifdef NO_NOT_AFTER     /* a request has no end */
#define LATE(u) 0
#else
#define LATE(u) (time[u] > NOTAFTER)
#endif

#ifdef LATE_SAYS        /* a late request is reported, authenticated, as not executed */
#define SAY(u, a) refused[a] = (target[a] == id[u] -> 1 : refused[a])
#else                   /* it is refused, unauthenticated */
#define SAY(u, a) skip
#endif

#ifdef ONE_RING         /* a successor inherits all keys, not only follow keys */
#define INHERITED(n) (n -> K1 : K0)
#else
#define INHERITED(n) (n -> FOLLOW1 : FOLLOW0)
#endif

#ifdef NO_ERASE         /* ring keys stay */
#define KEPT(keys) (keys)
#else
#define KEPT(keys) (keys & ~K0)
#endif

#ifdef FORGET_WINDOW    /* a dropped session's window goes with its secret */
#define DROP(u) forget(u)
#else
#define DROP(u) table[u] = DROPPED
#endif

#ifdef SAME_ID          /* a unit's id survives its start */
#define NEWID(u) id[u]
#else
#define NEWID(u) UNITS + starts
#endif

#ifdef FORGET_CLOSED    /* a closed session leaves nothing behind */
#define CLOSE(u) forget(u)
#else
#define CLOSE(u) table[u] = CLOSED
#endif

#ifdef NO_HEADER        /* a response key is not bound to its request */
#define OF(a, b) 1
#else
#define OF(a, b) (a == b)
#endif

#ifdef BELIEVE_HINTS    /* the client trusts the manager's hint that no unit executed */
#define MAYREPEAT 1
#else
#define MAYREPEAT refused[FIRST]
#endif

/* The table is full: an entry, or the record of a closed session, yields. */
inline press(u) {
	if
	:: table[u] != NONE && YIELDS(u) -> forget(u)
	:: else
	fi
}

inline expire(u) {
	if
	:: time[u] >= EXPIRY && table[u] != NONE -> forget(u)
	:: else
	fi
}

/* A sealed copy reaches a unit: pushed, pulled, or as the client's ticket. */
inline join(u) {
	if
	:: (copies & held[u]) && time[u] < EXPIRY ->
		assert(!(pinned && NEXT(u)));            /* P1: a pinned session stays with its code */
		if
		:: table[u] == NONE -> table[u] = OPEN; window[u] = 0
		:: table[u] == DROPPED -> table[u] = OPEN
		:: else                                 /* an open one stays, a closed one never opens */
		fi
	:: else
	fi
}

inline execute(u, a) {
	if
	:: a == SAFE ->
		assert(!(ranSafe & (1 << id[u])));      /* P2: at most once per unit */
		ranSafe = ranSafe | (1 << id[u])
	:: else ->
		runs++;
		assert(runs <= 1)                       /* P3: at most once */
	fi;
	assert(time[u] <= NOTAFTER);                    /* P4: not after its time */
	assert(closedBy != id[u]);                      /* P5: closed is closed */
	answered[a] = 1
}

/* A request reaches a unit that has the session. */
inline deliver(u, a) {
	if
	:: sent[a] && table[u] == OPEN && time[u] < EXPIRY && FOR(u, a) && LATE(u) ->
		SAY(u, a)
	:: sent[a] && table[u] == OPEN && time[u] < EXPIRY && FOR(u, a) && !LATE(u) && FRESH(u, a) ->
		window[u] = window[u] | (1 << a);       /* in the step that read the time */
		if
		:: true -> execute(u, a)
		:: true -> refused[a] = (target[a] == id[u] -> 1 : refused[a])
		fi
	:: else
	fi
}

/* A renewal brings the keys of the ring; a successor inherits follow keys. */
inline renew(u) {
	if
	:: NEXT(u) -> held[u] = held[u] | OWN2 | INHERITED(rolled)
	:: else -> held[u] = held[u] | (rolled -> K1 : K0)
	fi
}

/* The first keys end; a secret that was not sealed under others is erased with them. */
inline erase(u) {
	if
	:: rolled && !gone[u] ->
		gone[u] = 1;
		held[u] = KEPT(held[u]);
		if
		:: table[u] == OPEN && !(copies & held[u]) -> DROP(u)
		:: else
		fi
	:: else
	fi
}

inline reseal(u) {
	if
	:: table[u] == OPEN && time[u] < EXPIRY ->
		if
		:: NEXT(u) -> copies = copies | OWN2
		:: !NEXT(u) && (held[u] & K1) -> copies = copies | (pinned -> STRICT1 : FOLLOW1)
		:: else
		fi
	:: else
	fi
}

/* Another unit; its host has set any clock. */
inline restart(u, t) {
	starts++;
	forget(u);
	time[u] = t;
	held[u] = 0;
	gone[u] = rolled;
	id[u] = NEWID(u);
	renew(u)
}

inline close(u) {
	if
	:: table[u] == OPEN && closedBy == 0 && id[u] != 0 ->
		closedBy = id[u];
		CLOSE(u)
	:: else
	fi
}

/* Actions of the client. */
inline send(a) {
	sent[a] = 1;
	if
	:: a == SAFE -> target[a] = 0
	:: a != SAFE -> target[a] = id[A]
	:: a != SAFE -> target[a] = id[B]
	fi
}

/* A response to attempt b reaches the client as one to attempt a. */
inline accept(a, b) {
	if
	:: sent[a] && answered[b] && OF(a, b) ->
		assert(a == b);                         /* P6: a response belongs to its request */
		done = (a == FIRST -> 1 : done)
	:: else
	fi
}

active proctype manager() {
	byte u, a, b, t;

	atomic {
		select(t : 0 .. 1);
		pinned = t;
		id[A] = 1; id[B] = 2;
		renew(A); renew(B);
		table[A] = OPEN;
		copies = (pinned -> STRICT0 : FOLLOW0);
		t = 0
	}
	do
	:: atomic {
		select(u : 0 .. UNITS-1);
		if
		:: select(t : 0 .. EXPIRY); PASS(u, t); expire(u)
		:: true -> press(u)
		:: true -> join(u)
		:: select(a : 0 .. ATTEMPTS-1); deliver(u, a)
		:: true -> renew(u)
		:: true -> erase(u)
		:: true -> reseal(u)
		:: true -> close(u)
		:: starts == 0 && u == A -> select(t : 0 .. EXPIRY); restart(u, t)
		:: rolled == 0 -> rolled = 1
		:: !sent[FIRST] -> send(FIRST)
		:: !sent[SAFE] -> send(SAFE)
		:: sent[FIRST] && !sent[SECOND] && !done && MAYREPEAT -> send(SECOND)
		:: select(a : 0 .. ATTEMPTS-1); select(b : 0 .. ATTEMPTS-1); accept(a, b)
		/* P7: an attacker who takes a unit over after the erasure reads no recorded session */
		:: gone[u] && table[u] != OPEN -> assert(!(copies & held[u] & K0))
		fi;
		u = 0; a = 0; b = 0; t = 0
	}
	od
}
