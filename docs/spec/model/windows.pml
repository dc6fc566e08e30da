/*
 * One call that is not safe, at two units, over time: what a unit may forget, and
 * when. A call is made in attempts. Each attempt has a number of its own, is bound
 * to one start of one unit, and has an end, its `not after`. Between client and
 * units is the manager. It has every attempt that was ever sent, delivers it to
 * either unit at any time and any number of times, makes a unit join the session
 * again, fills the tables, and restarts units. A host sets the wall clock before a
 * start; from then on a unit's time only advances. Encryption is perfect: a
 * statement about an attempt comes from the unit that the attempt is bound to.
 *
 * The macros each remove one protection; README.md lists what then breaks.
 * ONLY_RUNS leaves W5 out, which some of them break first.
 */

#define UNITS 2
#define ATTEMPTS 2
#define END 3           /* of all time */
#define AHEAD 1         /* how far an attempt's end may be ahead of the unit's time */

byte time[UNITS];       /* a unit's own */
byte start[UNITS];      /* the number of its start: another start is another unit id */
bit  entry[UNITS];      /* the session is in the unit's table */
bit  record[UNITS];     /* the session was closed here: no entry, a record of it */
byte taken[UNITS];      /* numbers taken, as bits; 0: the window is untouched */
byte latest[UNITS];     /* the latest end of all numbers taken, executed or not */
byte until[UNITS];      /* the record yields once this time is past */
bit  closed[UNITS];     /* this start of the unit has confirmed a close */
byte closedAt[UNITS];   /* the unit's time then */
byte starts;

bit  sent[ATTEMPTS];
byte target[ATTEMPTS];
byte ofStart[ATTEMPTS];
byte end[ATTEMPTS];
byte ran[ATTEMPTS];
bit  said[ATTEMPTS];    /* its unit responded, authenticated: not executed, and will not be */
byte runs;              /* executions of the call, in all attempts */
bit  closing;           /* the client has requested a close: it sends nothing more */
bit  slow[4], waits[4]; /* see STEP_APART and WAITS; indexed by attempt and unit */

/* Scratch, set before use in each step. */
hidden byte a_, u_, t_;

#define BIT(a) (1 << (a))
#define AT(a, u) ((a)*UNITS + (u))

/* The one comparison that decides both "too late" and "may be forgotten". */
#define OVER(u, t) (time[u] > (t))

#ifdef TWO_COMPARISONS  /* forgotten in the last instant in which it is not too late */
#define FORGETTABLE(u) (time[u] >= latest[u])
#else
#define FORGETTABLE(u) OVER(u, latest[u])
#endif

#ifdef RECORD_FREE      /* the record of a closed session is forgotten at any time */
#define YIELDS(u) 1
#else
#define YIELDS(u) OVER(u, until[u])
#endif

#ifdef RECORD_SHORT     /* the record stays as long as an entry would */
#define KEEP(u) latest[u]
#else                   /* and at least until all requests sent before the close are late */
#define KEEP(u) (latest[u] > time[u] + AHEAD -> latest[u] : time[u] + AHEAD)
#endif

#ifdef FAR_AHEAD        /* any end is accepted */
#define NEAR(a, u) 1
#else
#define NEAR(a, u) (end[a] <= time[u] + AHEAD)
#endif

#if defined(NOT_BOUND)  /* a unit executes requests that are bound to no unit */
#define MINE(a, u) 1
#elif defined(SAME_ID)  /* a unit's id survives its start */
#define MINE(a, u) (target[a] == u)
#else
#define MINE(a, u) (target[a] == u && ofStart[a] == start[u])
#endif

#if defined(BELIEVE_HINTS) /* the client repeats when the manager reports that nothing ran */
#define MAY_REPEAT 1
#elif defined(TIME_SAYS)   /* or when the attempt's end is over at its unit */
#define MAY_REPEAT (said[0] || OVER(target[0], end[0]))
#else
#define MAY_REPEAT said[0]
#endif

inline forget(u) { entry[u] = 0; record[u] = 0; taken[u] = 0; latest[u] = 0; until[u] = 0 }

inline execute(a, u) {
	ran[a]++;
	runs++;
	assert(ran[a] <= 1);                    /* W1: an attempt runs at most once */
	assert(runs <= 1);                      /* W2: so does the call */
	assert(!said[a])                        /* W3: an attempt reported as not executed does not run */
}

inline say(a) { said[a] = 1; assert(ran[a] == 0) } /* W3, in the other order */

inline note(a, u) { latest[u] = (end[a] > latest[u] -> end[a] : latest[u]) }

/* The number is taken, and the request is passed to the program, or is not. */
inline take(a, u) {
#ifndef ONLY_RUNS       /* W5: an attempt sent in time before a close is not taken after it */
	assert(!(closed[u] && end[a] <= closedAt[u] + AHEAD));
#endif
	taken[u] = taken[u] | BIT(a);
	if
	:: true -> note(a, u); execute(a, u)
#ifdef RAN_ONLY         /* latest counts only executed attempts */
	:: true -> say(a)
#else
	:: true -> note(a, u); say(a)
#endif
#ifdef HANDED_SAYS      /* an attempt that the program received and failed at is reported as not executed */
	:: true -> note(a, u); execute(a, u); say(a)
#endif
#ifdef WAITS            /* it waits for its turn, for any time */
	:: true -> note(a, u); waits[AT(a, u)] = 1
#endif
	fi
}

inline deliver(a, u) {
	if
	:: !MINE(a, u) || !entry[u] -> skip
	:: MINE(a, u) && entry[u] && OVER(u, end[a]) ->
#ifdef LATE_SAYS        /* a late attempt is refused with an authenticated response */
		if
		:: !(taken[u] & BIT(a)) -> say(a)
		:: else
		fi
#else                   /* it is refused, unauthenticated */
		skip
#endif
	:: MINE(a, u) && entry[u] && !OVER(u, end[a]) && !NEAR(a, u) -> skip
	:: MINE(a, u) && entry[u] && !OVER(u, end[a]) && NEAR(a, u) && (taken[u] & BIT(a)) ->
#ifdef REPLAY_SAYS      /* so is a number that was seen */
		say(a)
#else
		skip
#endif
	:: MINE(a, u) && entry[u] && !OVER(u, end[a]) && NEAR(a, u) && !(taken[u] & BIT(a)) ->
#ifdef STEP_APART       /* the time is read in one step, the number taken in another */
		if
		:: slow[AT(a, u)] = 1
		:: take(a, u)
		fi
#else
		take(a, u)
#endif
	fi
}

/* A sealed copy or a ticket. A known session stays as it is; a closed one stays closed. */
inline join(u) {
	if
	:: record[u] -> skip
	:: !record[u] && !entry[u] -> entry[u] = 1
#ifdef COPY_REPLACES    /* a copy replaces an entry */
	:: !record[u] && entry[u] -> taken[u] = 0; latest[u] = 0
#else
	:: !record[u] && entry[u] -> skip
#endif
	fi
}

/* The table is full, and an entry or a record yields. */
inline press(u) {
	if
	:: entry[u] && taken[u] == 0 -> forget(u)
	:: entry[u] && taken[u] != 0 && FORGETTABLE(u) -> forget(u)
#ifdef DROP_EARLY       /* an entry yields although the ends of its numbers are not past */
	:: entry[u] -> forget(u)
#endif
	:: record[u] && YIELDS(u) -> forget(u)
	:: else
	fi
}

/* A request to close: its own end is within the limit of the unit, so KEEP covers it. */
inline close(u) {
	if
	:: entry[u] ->
		until[u] = KEEP(u);
		entry[u] = 0; record[u] = 1;
		taken[u] = 0; latest[u] = 0;
		closing = 1;
		if
		:: closed[u] -> skip
		:: else -> closed[u] = 1; closedAt[u] = time[u]
		fi
	:: else
	fi
}

/* Another unit, whose time begins with any wall clock. */
inline restart(u, t) {
	starts++;
	start[u]++;
	forget(u);
	time[u] = t;
	closed[u] = 0; closedAt[u] = 0;
	slow[AT(0, u)] = 0; slow[AT(1, u)] = 0;
	waits[AT(0, u)] = 0; waits[AT(1, u)] = 0
}

inline send(a, u, t) { sent[a] = 1; target[a] = u; ofStart[a] = start[u]; end[a] = t }

active proctype world() {
	do
	:: atomic {
		select(a_ : 0 .. ATTEMPTS-1);
		select(u_ : 0 .. UNITS-1);
		select(t_ : 0 .. END);
		if
		:: !sent[0] && !closing && a_ == 0 -> send(0, u_, t_)
		:: sent[0] && !sent[1] && !closing && a_ == 1 && MAY_REPEAT -> send(1, u_, t_)
		:: sent[a_] && t_ == 0 -> deliver(a_, u_)
		:: a_ == 0 && t_ == 0 -> join(u_)
		:: a_ == 0 && t_ == 0 -> press(u_)
		:: a_ == 0 && t_ == 0 -> close(u_)
		:: a_ == 0 && t_ == 0 && time[u_] < END -> time[u_]++
#ifdef CLOCK_BACK       /* the host sets a unit's time */
		:: a_ == 0 && t_ == 0 && time[u_] > 0 -> time[u_]--
#endif
		:: a_ == 0 && starts < 2 -> restart(u_, t_)
#ifdef STEP_APART
		:: t_ == 0 && slow[AT(a_, u_)] && entry[u_] && !(taken[u_] & BIT(a_)) ->
			slow[AT(a_, u_)] = 0; take(a_, u_)
#endif
#ifdef WAITS
		:: t_ == 0 && waits[AT(a_, u_)] -> waits[AT(a_, u_)] = 0;
			if
			:: true -> execute(a_, u_)
			:: true -> say(a_)
			fi
#endif
		:: else
		fi;
		/* W4: a touched session can be forgotten a while after its last number */
		assert(taken[u_] == 0 || latest[u_] <= time[u_] + AHEAD)
	}
	od
}
