/*
 * Heads, cuts, renewals and rings over time, of one task in key mode shared and of
 * one role of a group. Unit 0 is the unit that is cut: it keeps everything that it
 * ever received and continues after the cut. Unit 1 is honest, as are the client
 * and the authority. Between them is a manager. It shows any head that the authority
 * ever proved to the client and to unit 1 at any time, or none; it has every sealed
 * copy; and it shows signed steps that still wait. The authority disappears and
 * returns. Signatures, keys and hashes are perfect: a head is the number of its
 * steps, and a unit has only the keys that it received.
 *
 * A checker is the client or unit 1 as a peer. The macros each remove one
 * protection; README.md lists what then breaks. GROUP models time instead of
 * sessions: a cut is then the withdrawal of the party of both units.
 */

#define STEPS 3         /* of the history, after its genesis */
#define RINGS 6         /* the last: one roll, and two for each of two cuts */

/* The history: the state after each step. */
byte steps;
bit  cut[4];            /* unit 0 may be refused */
bit  retired[4];        /* the release gets no new certificates */
byte lastCut[4];        /* the cut in the shared key and its leaf */
byte concern[4];        /* the last step that concerns the task */
byte keptKeys[4];       /* shared keys, as bits, that unit 0 had at a cut up to here */
byte keptRings[4];      /* rings likewise */

/* The authority. */
bit  away;
byte ring;              /* current; the next one is in reports too */
byte next;
byte previous;          /* as bits; none after a cut */
byte drawn;             /* the newest ring */
bit  rolled;

/* Unit 0. */
byte keys0, rings0;     /* the keys and rings it has, as bits */
bit  asking;            /* an enrolment has begun */
byte asked;             /* under this head */

/* Unit 1 and the client. */
byte head[2];           /* the newest head that it has adopted */
bit  stray[2];          /* it adopted a step that the authority has not */
#define UNIT 0
#define CLIENT 1
byte renewed;           /* the head of unit 1's last report */
byte sealing;           /* the ring it seals under */
byte opening;           /* the rings it opens with, as bits */

/* The client's session. */
bit  session;
bit  by0;               /* unit 0 opened it */
byte named;             /* the head in its opener's response */
bit  alone;             /* that response had no ticket: the session is sealed under no ring */
byte copies;            /* the rings under which it was sealed, as bits */
bit  memory;            /* unit 1 has it in memory */
byte under;             /* the ring of its newest copy there */

#ifdef GROUP
#define END 5           /* of all time */
#define SILENCE 1       /* max_silence */
byte now;
byte until[4];          /* the time of the last proof of each head but the newest */
byte lost;              /* the time at which the authority went away */
byte proof[2];          /* the time of the newest proof that it has seen */
byte withdrawn;         /* the time of the withdrawal */
#define PROOF(h) (h < steps -> until[h] : (away -> lost : now))
#endif

/* Scratch, set before use in each step. */
hidden byte h_, c_;

#define BIT(n) (1 << (n))

#ifdef NO_CUT_IN_KEY    /* the shared key is the same after a cut */
#define KEY(c) 0
#else
#define KEY(c) c
#endif

#ifdef NO_CUT_CHECK     /* a checker accepts a shared leaf of any cut */
#define CURRENT(c, h) 1
#else
#define CURRENT(c, h) (c == lastCut[h])
#endif

#ifdef LEAF_HEAD        /* a unit certificate is checked by the policy that it names */
#define ACCEPTS(h) 1
#elif defined(RETIRE_CUTS) /* a retired release is refused like one that was cut off */
#define ACCEPTS(h) (!cut[h] && !retired[h])
#else
#define ACCEPTS(h) (!cut[h])
#endif

#ifdef RETIRED_RENEWS   /* a retired release gets certificates */
#define LIVE 1
#else
#define LIVE !retired[steps]
#endif

#ifdef GROUP            /* both units are of the party that withdraws */
#define CUT1 cut[steps]
#else
#define CUT1 0
#endif

#ifdef SEALS_ON         /* a unit seals under the ring it has, whatever head it knows */
#define MAY_SEAL 1
#else                   /* not from a step that concerns it until it has renewed */
#define MAY_SEAL (renewed >= concern[head[UNIT]])
#endif

#ifdef OPENED_AFTER     /* the client uses any session that it opens after it knows the cut */
#define NAMED(h) head[CLIENT]
#else                   /* its opener must know the cut too, and share it under no older ring */
#define NAMED(h) h
#endif

#if defined(CARRIED_OVER)  /* the client continues a session from before a cut */
#define USABLE (!(by0 && cut[head[CLIENT]]))
#elif defined(OPENER_ONCE) /* it checks the unit that opened the session only at the opening */
#define USABLE (alone || named >= lastCut[head[CLIENT]])
#else
#define USABLE ((alone || named >= lastCut[head[CLIENT]]) && !(by0 && cut[head[CLIENT]]))
#endif

inline adopted() {      /* a step that changes nothing of the task, at first */
	steps++;
	cut[steps] = cut[steps-1]; retired[steps] = retired[steps-1];
	lastCut[steps] = lastCut[steps-1]; concern[steps] = concern[steps-1];
	keptKeys[steps] = keptKeys[steps-1]; keptRings[steps] = keptRings[steps-1];
#ifdef GROUP
	until[steps-1] = now
#endif
}

inline replaceRings() {
#if defined(RINGS_KEPT) /* a cut replaces no ring */
	skip
#elif defined(NEXT_KEPT) /* the next ring, which is in reports already, becomes current */
	previous = 0; ring = next; drawn++; next = drawn
#elif defined(PREVIOUS_KEPT) /* units open with the former ring */
	previous = BIT(ring); drawn++; ring = drawn; drawn++; next = drawn
#else
	previous = 0; drawn++; ring = drawn; drawn++; next = drawn
#endif
}

inline adoptCut() {
	adopted();
	cut[steps] = 1; lastCut[steps] = steps; concern[steps] = steps;
	keptKeys[steps] = keptKeys[steps] | keys0;
	keptRings[steps] = keptRings[steps] | rings0;
#ifdef GROUP
	withdrawn = now
#else
	replaceRings()
#endif
}

inline adoptBack() {    /* unit 0 is admitted again; its cut remains a cut */
	adopted();
	cut[steps] = 0; concern[steps] = steps;
#ifdef CUT_FORGOTTEN    /* the shared key from before the cut returns */
	lastCut[steps] = 0
#endif
}

/* Unit 0 gets a report, and keeps all keys in it. */
inline report0() {
	assert(!cut[steps]);                    /* H8: none after an adopted cut */
	keys0 = keys0 | BIT(KEY(lastCut[asked]));
	rings0 = rings0 | previous | BIT(ring) | BIT(next)
}

/* Unit 1 gets a report, and forgets sessions under a ring that is not in it. */
inline renew() {
	head[UNIT] = steps; renewed = steps;
	sealing = ring; opening = previous | BIT(ring) | BIT(next);
#ifdef GROUP
	proof[UNIT] = now;
#endif
	if
	:: memory && !alone && !(opening & BIT(under)) -> memory = 0; under = 0
	:: else
	fi
}

/* A checker sees a proved head. If its own history is another it cannot follow. */
inline follow(c, h) {
	assert(!stray[c]);                      /* H9: every proved head can be followed */
	head[c] = h
}

inline learn(c, h) {
	if
	:: h > head[c] -> follow(c, h)
	:: else
	fi;
#ifdef GROUP
#ifdef ARRIVAL_TIME     /* the age of a proof counts from its arrival */
	proof[c] = now
#else
	if
	:: h >= head[c] && PROOF(h) > proof[c] -> proof[c] = PROOF(h)
	:: else
	fi
#endif
#endif
}

#ifdef GROUP

#ifdef NO_SILENCE       /* a checker that sees no new proof continues */
#define FRESH(c) 1
#else
#define FRESH(c) (now <= proof[c] + SILENCE)
#endif

/* H11: a withdrawal takes effect where the manager shows no head, too. */
#define IN_TIME (!cut[steps] || now <= withdrawn + SILENCE)

#endif

init {
	atomic { ring = 0; next = 1; drawn = 1; opening = 3 }
	do
	:: atomic { steps < STEPS && !away -> adopted() }             /* a step about another task */
	:: atomic { steps < STEPS && !away && !cut[steps] -> adoptCut() }
#ifndef GROUP
	:: atomic { steps < STEPS && !away && cut[steps] -> adoptBack() }
	:: atomic { steps < STEPS && !away && !retired[steps] ->
		adopted(); retired[steps] = 1; concern[steps] = steps }
	:: atomic { !rolled && !away -> rolled = 1; previous = BIT(ring); ring = next; drawn++; next = drawn }
#endif
	:: atomic { !away -> away = 1
#ifdef GROUP
		; lost = now
#endif
		}
	:: atomic { away -> away = 0 }

#ifndef GROUP
	/* Enrolment of unit 0: the policy is read in one step, the report issued in another. */
	:: atomic { !away && !asking && !cut[steps] && LIVE -> asking = 1; asked = steps }
	:: atomic { !away && asking ->
		asking = 0;
		if
#ifdef STALE_ISSUE      /* the head is not compared in the transaction that records */
		:: true -> report0()
#else
		:: asked == steps -> report0()
		:: else
#endif
		fi;
		asked = 0 }
#endif

	/* Unit 1 renews: by its timer, or for a step that concerns it. */
	:: atomic { !away && !CUT1 && LIVE -> assert(!retired[steps]); /* H7: retired is not renewed */ renew() }
#ifdef ALL_RENEW        /* every step is a reason to renew */
	:: atomic { !away && !CUT1 && LIVE && head[UNIT] > renewed ->
#else
	:: atomic { !away && !CUT1 && LIVE && concern[head[UNIT]] > renewed ->
#endif
		assert(concern[head[UNIT]] > renewed); /* H10: only what concerns it */
		renew() }

	/* Heads and hints travel. */
	:: atomic { select(c_ : 0 .. 1); select(h_ : 0 .. STEPS);
		if
		:: h_ <= steps -> learn(c_, h_)
		:: else
		fi }
#ifdef HINT_ADOPTED     /* a signed step that waits, and is cancelled, is adopted */
	:: atomic { select(c_ : 0 .. 1); stray[c_] = 1 }
#endif
#ifdef NOT_CONCERNED    /* the cut of another unit does not concern a unit */
	:: atomic { renewed < head[UNIT] -> renewed = head[UNIT] }
#endif

	/* Unit 0 shows a checker its certificate, and shared leaves. */
	:: atomic { select(c_ : 0 .. 1);
#ifdef GROUP
		if
		:: ACCEPTS(head[c_]) && FRESH(c_) -> assert(IN_TIME)
		:: else
		fi;
#endif
		if
		:: ACCEPTS(head[c_]) -> assert(!cut[head[c_]])        /* H1 */
		:: else -> assert(cut[head[c_]])                      /* H6: and no other unit is refused */
		fi }
#ifdef GROUP
	:: atomic { now < END -> now++ }
	/* Unit 1 serves and calls in the group. */
	:: atomic { !cut[head[UNIT]] && FRESH(UNIT) -> assert(IN_TIME) }
#else
	:: atomic { select(c_ : 0 .. 1); select(h_ : 0 .. STEPS);
		if
		:: h_ <= steps && CURRENT(lastCut[h_], head[c_]) ->
			assert(!(keptKeys[head[c_]] & BIT(KEY(lastCut[h_])))) /* H2 */
		:: else
		fi }

	/* The client opens its session. Unit 0 names any head that the client knows. */
	:: atomic { !session && ACCEPTS(head[CLIENT]) -> select(h_ : 0 .. STEPS); select(c_ : 0 .. 1);
		if
		:: h_ <= head[CLIENT] -> session = 1; by0 = 1; named = NAMED(h_); alone = c_
		:: else
		fi }
	:: atomic { !session && head[UNIT] <= head[CLIENT] -> session = 1; named = NAMED(head[UNIT]); alone = !MAY_SEAL; memory = 1; under = sealing }
	:: atomic { session && !USABLE -> session = 0; by0 = 0; named = 0; alone = 0; copies = 0; memory = 0; under = 0 }

	/* Unit 1 seals it, forgets it, and joins it by a copy. */
	:: atomic { session && memory && !alone && MAY_SEAL ->
		assert(!(keptRings[head[UNIT]] & BIT(sealing)));      /* H3 */
		copies = copies | BIT(sealing); under = sealing }
	:: atomic { memory -> memory = 0; under = 0 }
	:: atomic { session && !memory && (copies & opening) -> select(h_ : 0 .. RINGS);
		if
		:: copies & opening & BIT(h_) -> memory = 1; under = h_
		:: else
		fi }

	/* The client sends a request in it. */
	:: atomic { session && USABLE ->
		assert(!(by0 && cut[head[CLIENT]]) && !(keptRings[head[CLIENT]] & copies)) /* H4 */ }
	/* Unit 1 serves one, of any client that has the session. */
	:: atomic { session && memory ->
#ifdef STOPS            /* not from a step that concerns it until it has renewed */
		assert(renewed >= concern[head[UNIT]])
#else
		assert(renewed < lastCut[head[UNIT]] || !(keptRings[renewed] & copies)) /* H5 */
#endif
		}
#endif
	od
}
