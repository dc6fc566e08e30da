package frame

import (
	"github.com/cohort-tee/cohort/internal/wire"
)

// explanation is what a code means and what to do about it.
type explanation struct {
	Exit    int
	Meaning string
	Hint    string
}

// Explanations has every reason of package wire and every code of this one.
var Explanations = map[string]explanation{
	string(wire.Malformed):     {ExitRefused, "Bytes are not in the one encoding their format allows.", "compare the versions of both sides with `cohort version`"},
	string(wire.UnknownRoot):   {ExitRefused, "The evidence is vouched for by a platform root that policy does not accept.", "list the platform's root under [platform.…] roots in the next policy, or use the machine that policy means"},
	string(wire.BadChain):      {ExitRefused, "A certificate chain does not verify.", "run `cohort verify ADDRESS` to see which certificate breaks it"},
	string(wire.Revoked):       {ExitRefused, "The vendor revoked a certificate of this platform.", "replace the machine; policy cannot override a revocation"},
	string(wire.WrongChip):     {ExitRefused, "The certificates belong to another chip than the evidence.", "fetch the endorsements of this very chip"},
	string(wire.BadSignature):  {ExitRefused, "A signature does not verify.", "fetch the bytes again; if it stays, they were changed on the way"},
	string(wire.BadDigest):     {ExitRefused, "Bytes do not hash to the digest that was signed.", "fetch the bytes again; if it stays, they were changed on the way"},
	string(wire.BadNonce):      {ExitRefused, "Evidence was made for another request, or for another use.", "repeat the command; if it stays, old evidence is being replayed"},
	string(wire.Expired):       {ExitRefused, "Something is used outside its time.", "check both clocks; renew what has ended"},
	string(wire.CRLMissing):    {ExitRefused, "No revocation list was there though one is required.", "let the authority reach its collateral source"},
	string(wire.BadTCB):        {ExitRefused, "The platform's version, status or setting is not what policy allows.", "update the machine's firmware or change the setting that is named; owners can allow it in policy"},
	string(wire.Debug):         {ExitRefused, "The TEE is one that its host can read.", "start it without debugging; only policy can allow it"},
	string(wire.NoPlatform):    {ExitRefused, "Policy does not name this platform.", "add a [platform.…] table in the next policy, or run on a platform that policy names"},
	string(wire.NotMeasured):   {ExitRefused, "The program that runs is not one that policy names: its file, agent or arguments differ.", "compare `cohort measure -- PROGRAM ARGS` with the policy's reference values (`cohort policy show`)"},
	string(wire.DeviceMissing): {ExitRefused, "A device that the release demands beside its TEE, such as a GPU, gave no evidence.", "run the unit where the device is, with a program that asks it; policy says how many (`devices` of the release)"},
	string(wire.NotThisDevice): {ExitRefused, "This machine has no such TEE, or it does not respond.", "run `cohort doctor`; for development start `cohort soft`"},

	string(wire.BadPolicy):     {ExitRefused, "A policy file breaks a rule.", "run `cohort policy check FILE`"},
	string(wire.NoQuorum):      {ExitRefused, "Too few owners signed, or too few parties of a group approve it.", "see who is missing with `cohort policy status` or `cohort group status GROUP`"},
	string(wire.NotOwner):      {ExitRefused, "A signature was made by a key that is no owner's in the policy in force, or not that party's.", "sign with a key listed under [owners]; for a group, with the party's own"},
	string(wire.WrongSequence): {ExitRefused, "The policy is not the next one.", "start from `cohort policy next`"},
	string(wire.WrongGenesis):  {ExitRefused, "The history begins with another policy than the pinned one.", "check --genesis; if it is right, the authority is of another trust domain"},
	string(wire.WrongDomain):   {ExitRefused, "It belongs to another trust domain.", "check --genesis and --authority"},
	string(wire.WrongRoot):     {ExitRefused, "The authority's root is not the one that the signed policy names.", "this is another authority; use the one your owners named"},
	string(wire.WrongDraft):    {ExitRefused, "The root was made for another draft of the first policy: it serves no other history.", "use the first policy that this root's draft became; a new domain needs a root of its own (`cohort authority init --draft`)"},
	string(wire.RootUnbound):   {ExitRefused, "The sealed root is of the first format, which any first policy could use.", "make a new root with `cohort authority init --draft` in a new store, and found the domain anew"},
	string(wire.Behind):        {ExitRefused, "Newer policy exists than this authority, or the report of this unit, knows: a caller has seen it, or one of its own rows names it.", "show it the newer signed files: `cohort authority run --history FILE`, or a unit that has them; its store may have been put back"},
	string(wire.NotFound):      {ExitRefused, "There is no such task, release, proposal or page.", "list what there is with `cohort status` or `cohort policy show`"},
	string(wire.ProposalOver):  {ExitRefused, "The proposal was cancelled or its time has run out.", "propose it again"},
	string(wire.Withdrawn):     {ExitRefused, "A party withdrew from the group, or its parties agreed on another roster since.", "see `cohort group status GROUP`; the party approves again, or the unit takes part in the newer roster"},
	string(wire.NoParty):       {ExitRefused, "The roster does not have the program under the party whose key was given.", "compare the key with `cohort group show GROUP`; a roster that lists your program under another party is not yours"},

	string(wire.BadRequest):     {ExitRefused, "A request breaks the form of the API.", "compare the versions of both sides with `cohort version`"},
	string(wire.TooLarge):       {ExitRefused, "Something is over its size limit.", "make it smaller; the limits are in docs/reference"},
	string(wire.TooMany):        {ExitUnreachable, "Too many requests from one address, or too many at once.", "wait a moment and repeat; the refusal and the metrics name the quota"},
	string(wire.NonceUsed):      {ExitRefused, "The challenge was used before, or is not this authority's.", "repeat the command: it takes a new challenge"},
	string(wire.BadCSR):         {ExitRefused, "A certificate request carries more than a key.", "names come from policy, never from the request"},
	string(wire.WrongKind):      {ExitRefused, "A certificate is of another kind than this use demands.", "check that the address is the service's, not the authority's"},
	string(wire.WrongIdentity):  {ExitRefused, "A certificate is of another identity: other code, or another task.", "check --task or --id; `cohort verify` shows what is there"},
	string(wire.WrongName):      {ExitRefused, "A name is not in the policy.", "use a name from the task's `names`"},
	string(wire.WrongGroup):     {ExitRefused, "A certificate or a statement is of another group.", "check --group; `cohort group status GROUP` shows what the policy has"},
	string(wire.WrongRole):      {ExitRefused, "A unit is of another role of its group than this use demands, or its program is.", "compare the program with the role's members in `cohort group show GROUP`"},
	string(wire.StaleRoster):    {ExitRefused, "A group's identity is not the one in force: its roster changed.", "see the identity in force with `cohort group status GROUP`; parties approve the new one"},
	string(wire.NoExtension):    {ExitRefused, "A certificate lacks Cohort's extension, or it is broken.", "check that the address is a Cohort unit's"},
	string(wire.ClockSkew):      {ExitRefused, "Two clocks are too far apart, or one jumped.", "set the clocks (NTP) and restart; a unit whose clock stays off ends by itself; an authority that issued with a clock far ahead needs `cohort authority restore` by its owners"},
	string(wire.StoreFailed):    {ExitUnreachable, "Nothing could be recorded, so nothing was issued.", "make room on, or repair, the authority's disk"},
	string(wire.StoreForeign):   {ExitRefused, "The store is empty, damaged or another authority's.", "give the right --store; a new one is made by `cohort authority init` only"},
	string(wire.RingElsewhere):  {ExitUnreachable, "Another authority of the same store issues ring keys at present.", "give units every authority: repeat --authority; they go to the next by themselves"},
	string(wire.GroupElsewhere): {ExitUnreachable, "The authority has no root of this group: the group's roster does not name its program or machine, or it cannot open the secret that another one sealed.", "ask an authority that the roster names (`cohort group show GROUP`); where none is left the group has ended, and owners give it a new roster"},
	string(wire.Unavailable):    {ExitUnreachable, "The other side is not ready, or is shutting down.", "wait, or look at its /readyz"},
	string(wire.CertExpired):    {ExitRefused, "A unit's certificate has ended and was not renewed.", "see why it cannot renew: `cohort log`, and the unit's own log"},
	string(wire.NotEnrolled):    {ExitUnreachable, "A unit has no certificate yet.", "wait, or see why with `cohort log`"},
	string(wire.NotAllowed):     {ExitRefused, "Policy does not allow this call, or a request that changes something was bound to no unit.", "add the task to `calls` in the next policy; use a client that binds such requests"},
	string(wire.OutcomeUnknown): {ExitUnreachable, "The connection ended after the request was sent: it may have been executed.", "ask the service what happened, or mark such requests with an Idempotency-Key it honours"},

	string(wire.CutOff):      {ExitRefused, "Owners cut the unit off: by its id, its chip, platform or release, or by a rule that was raised after its certificate was issued.", "reach another unit; the unit renews where policy still admits it, and a restarted unit is another unit"},
	string(wire.Retired):     {ExitRefused, "The release is retired: it gets no new certificates and ends with those it has.", "start units of a release that is not retired"},
	string(wire.NoPlace):     {ExitRefused, "The task has no place for another unit (`units` in its policy), or the unit has left. The refusal names holders and when the next place becomes free.", "wait, end a unit in good order, or have owners sign a policy with more `units`: the surge of a roll-out and one crash included"},
	string(wire.NoRecipient): {ExitRefused, "An owner's SSH key cannot be encrypted to: ECDSA and hardware keys only sign. Nothing was written.", "put `age = \"age1…\"` (from `age-keygen`) beside the owner's key in the next policy"},
	string(wire.BadShare):    {ExitRefused, "A share of a backup is forged, changed, repeated, or of another backup or request.", "ask the owner it names for the share again; all shares are of one backup and unlocked for one request"},
	string(wire.StaleShare):  {ExitRefused, "A share was made for other owners, keys or another quorum than the policy's.", "use shares of the newest backup; `cohort status` shows which that is"},

	string(wire.Misdirected):     {ExitUnreachable, "A request was bound to a unit that it did not reach.", "repeat it; ask the service what happened if it may not run twice"},
	string(wire.Rekey):           {ExitUnreachable, "The unit cannot open the session.", "repeat the command: it opens another session"},
	string(wire.TicketWanted):    {ExitUnreachable, "The unit does not have the session and received no ticket.", "repeat the command"},
	string(wire.CookieWanted):    {ExitUnreachable, "The unit is busy, or asked for evidence, and wants its cookie back.", "repeat the command"},
	string(wire.NotExecuted):     {ExitUnreachable, "The unit reports, authenticated, that it has not executed the request and will not.", "repeat the command"},
	string(wire.Replayed):        {ExitRefused, "A request came to a unit twice, or so late that the unit cannot know; or a key to open a session with did.", "a host between repeats requests, or delays them; repeat the command"},
	string(wire.Overload):        {ExitUnreachable, "A unit, gateway or authority has no room for another session or request, or none that may yield yet.", "wait 2 minutes, or start more units; the refusal and the metrics name the quota"},
	string(wire.UnknownRing):     {ExitRefused, "A session is sealed under a ring key that the unit does not have.", "open another session"},
	string(wire.SessionOver):     {ExitRefused, "The session has ended or was closed.", "open another session"},
	string(wire.Truncated):       {ExitUnreachable, "A stream ended before its end: the unit died, or a host between cut it.", "repeat what may be repeated"},
	string(wire.OneOffKey):       {ExitRefused, "A one-off request was made for a key that the units do not have, or have no longer.", "fetch the key configuration again with `cohort trust --ohttp`"},
	string(wire.EvidenceMissing): {ExitRefused, "Evidence, or a receipt, was asked for and did not come.", "sign a first policy with --init; elsewhere something between you and the unit, or a unit without its TEE, impersonates a real one: trust nothing of it"},
	string(wire.Internal):        {ExitInternal, "A fault of Cohort's own.", "please report it with the output of `cohort version` and the log"},

	CodeUsage:       {ExitUsage, "The command line, a variable or the configuration file is not understood.", "add --help to the command"},
	CodeFile:        {ExitUsage, "A file cannot be read or written.", "check the path and its permissions"},
	CodeUnreachable: {ExitUnreachable, "The address does not respond.", "check that it runs and that the address is right"},
	CodePortTaken:   {ExitRefused, "Another program listens on the address.", "choose another port, for `cohort dev` with --base-port"},
	CodeInUse:       {ExitRefused, "Another process uses the directory.", "stop the other process, or give another --dir"},
	codeNoTEE:       {ExitUsage, "The command runs inside a TEE only, and no platform was given to launch it in.", "give --platform soft --tee-socket SOCKET, with `cohort soft` running"},
	CodeNotTrusted:  {ExitRefused, "TLS could not verify the other side.", "fetch the root again with `cohort trust`; if it stays, this is another server"},
	CodeHTTP:        {ExitHTTP, "`cohort request --fail` got a response with a status of 400 or more.", "read the response without --fail"},
	CodeProgram:     {ExitInternal, "A program that was to keep running ended by itself.", "see the program's own output above"},
	CodeInterrupted: {ExitRefused, "The command was interrupted before it was done.", "run it again"},
	CodeUnbound:     {ExitRefused, "The evidence is genuine and fits the policy, but nothing shows that its key lives in the device which it names: it may be a copy of another TEE's.", "ask the verifier that asked for the evidence: only it can check the credential of a TPM"},
	CodeCheckFailed: {ExitRefused, "A check of `cohort dev --check` failed.", "see the lines that begin with FAIL"},
}

// ExitWords describes each exit code.
var ExitWords = map[int]string{
	ExitDone:        "done",
	ExitRefused:     "refused",
	ExitUsage:       "invalid arguments",
	ExitUnreachable: "not reachable",
	ExitInternal:    "internal fault",
	ExitHTTP:        "error status in the response",
}

// Explain is the explanation of a code, and of an unknown one that it is a
// fault of ours.
func Explain(code string) explanation {
	if e, ok := Explanations[code]; ok {
		return e
	}
	return Explanations[CodeInternal]
}
