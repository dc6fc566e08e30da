package wire

// Label names one use of a key, a digest or a tag, with its version. Every use
// in the project has its own row in this table; two uses never share one.
type Label string

const (
	// Report data of evidence (SHA-512 of the framing).
	LabelInit       Label = "cohort init v2"        // authority init: authority root, draft
	LabelIssue      Label = "cohort issue v1"       // enrolment of a unit
	LabelTrust      Label = "cohort trust v1"       // the authority's own evidence in a trust response
	LabelTimedTrust Label = "cohort timed trust v1" // the same evidence for many clients: bound to a time in place of a nonce
	LabelRestore    Label = "cohort restore v1"     // a restore request: the key that shares are sealed to

	LabelGroupRoot Label = "cohort group root v1" // the authority's own evidence for the root of a roster

	// Digests.
	LabelMeasurement Label = "cohort measurement v1" // platform, registers
	LabelRegister    Label = "cohort register v1"    // one register inside a measurement
	LabelArguments   Label = "cohort arguments v1"   // argument list of a measured program
	LabelIdentity    Label = "cohort identity v1"    // identity id
	LabelRequest     Label = "cohort request v1"     // a certificate request as received
	LabelSerial      Label = "cohort serial v1"      // certificate serial numbers
	LabelDraft       Label = "cohort draft v1"       // a genesis policy without its authority root
	LabelHistory     Label = "cohort history v1"     // one step of the history chain
	LabelChecked     Label = "cohort checked v1"     // when vendor documents were fetched

	LabelOwners Label = "cohort owners v1" // quorum, owners and their keys
	LabelBackup Label = "cohort backup v2" // header of a backup; also the MAC over its digest

	// Groups (docs/spec/group.md).
	LabelGroup            Label = "cohort group v1"             // roster; its digest is the group's identity
	LabelGroupParty       Label = "cohort group party v1"       // one party inside a roster
	LabelGroupRole        Label = "cohort group role v1"        // one role inside a roster
	LabelRing             Label = "cohort group ring v1"        // names the units of one role: group identity, role
	LabelStatementReceipt Label = "cohort statement receipt v1" // signature over the head that a party's statement led to

	// Keys derived from the root secret (HKDF-SHA256 info).
	LabelRootKey     Label = "cohort authority root v1" // authority root key
	LabelIdentityKey Label = "cohort identity ca v1"    // identity root key
	LabelLeafKey     Label = "cohort leaf v2"           // shared leaf key of a validity and a cut
	LabelSignerKey   Label = "cohort authority leaf v1" // the kind-authority key of a window
	LabelNonceKey    Label = "cohort nonce key v1"      // MAC key of challenges
	LabelStoreKey    Label = "cohort store key v1"      // MAC key of stored rows
	LabelActivateKey Label = "cohort activate key v1"   // MAC key of credentials

	// Key derived from the secret of a roster (HKDF-SHA256 info), beside leaf keys and
	// kind-authority keys, whose labels are those above.
	LabelGroupRootKey Label = "cohort group root key v1" // group root key

	// Tags, signatures, encryption contexts.
	LabelNonce          Label = "cohort nonce v1"           // MAC of a challenge
	LabelActivate       Label = "cohort activate v1"        // secret of a credential: nonce, EK certificate, AK name
	LabelRow            Label = "cohort store row v1"       // MAC of a stored row
	LabelAdopted        Label = "cohort adopted v1"         // MAC of an adopted history step
	LabelSealedReport   Label = "cohort sealed report v1"   // HPKE info of a certificate report
	LabelReport         Label = "cohort report v1"          // signature over a certificate report
	LabelHead           Label = "cohort head v1"            // signature over a policy head: head, steps, time, spread
	LabelTrustStatement Label = "cohort trust statement v1" // signature over the authority's evidence, so that others can pass it on
	LabelLeave          Label = "cohort leave v1"           // signature of a unit that releases its place
	LabelRoot           Label = "cohort root v2"            // what a TEE seals: the root secret and its draft
	LabelSealedRoot     Label = "cohort sealed root v1"     // the reference values that it is sealed to
	LabelGroupSecret    Label = "cohort group secret v1"    // what a TEE seals: the secret of a roster and the roster's digest
	LabelOwnSealKey     Label = "cohort own seal key v1"    // HKDF info: what a TEE seals to one program alone

	LabelShare         Label = "cohort share v1"          // plaintext sealed to one owner
	LabelSealedShare   Label = "cohort sealed share v1"   // HPKE info of a share for the TEE that restores
	LabelHiddenShare   Label = "cohort hidden share v1"   // HKDF info: key of a share under the secret of a credential
	LabelInitKey       Label = "cohort init key v1"       // sealed by a challenged TEE at init: its attestation key
	LabelInitChallenge Label = "cohort init challenge v1" // MAC: secret of the credential with which a founder challenges
	LabelRestoreKey    Label = "cohort restore key v1"    // sealed by a challenged TEE with its request: HPKE key, attestation key

	// Rings and sealed sessions (docs/spec/channel.md).
	LabelRingID         Label = "cohort ring id v1"               // name of a ring key
	LabelSealKey        Label = "cohort seal v1"                  // HKDF info: what one unit seals under a ring key
	LabelCookieKey      Label = "cohort cookie key v1"            // HKDF info: MAC key of cookies
	LabelCookie         Label = "cohort cookie v1"                // MAC of a cookie
	LabelIntroduction   Label = "cohort introduction v1"          // device and key of a unit that a client challenges
	LabelSealed         Label = "cohort sealed session header v1" // associated data of a sealed session
	LabelSealedBody     Label = "cohort sealed session body v1"   // plaintext of a sealed session
	LabelSealedSession  Label = "cohort sealed session v1"        // a sealed session, which is also the ticket
	LabelTombstone      Label = "cohort tombstone v1"             // a sealed tombstone
	LabelTombstoneBound Label = "cohort tombstone header v1"      // associated data of a tombstone
	LabelBusUnit        Label = "cohort bus unit v1"              // a unit, as one manager announces it to others

	// The trusted channel (docs/spec/channel.md).
	LabelPin              Label = "cohort pin v1"                // what a session is pinned to
	LabelSessionOpen      Label = "cohort session open v1"       // open request
	LabelSessionResponse  Label = "cohort session response v1"   // response to it
	LabelSessionKEM       Label = "cohort session kem v1"        // HPKE info and exporter context
	LabelTranscript       Label = "cohort session transcript v1" // digest of all messages of both sides
	LabelSessionID        Label = "cohort session id v1"         // second part of a session id
	LabelSessionSecret    Label = "cohort session secret v1"     // HKDF info: session secret
	LabelConfirm          Label = "cohort session confirm v1"    // HKDF info: confirmation key
	LabelSessionSignature Label = "cohort session signature v1"  // signature of the unit
	LabelSessionEvidence  Label = "cohort session v1"            // report data of fresh evidence
	LabelChain            Label = "cohort chain v1"              // unit certificate and cross-certificate
	LabelRequestKey       Label = "cohort request key v1"        // HKDF info: key of one request
	LabelResponseKey      Label = "cohort response key v1"       // HKDF info: key of one response
	LabelCloseKey         Label = "cohort close key v1"          // HKDF info: key that a unit keeps of a closed session
	LabelReceipt          Label = "cohort receipt v1"            // receipt of one response
	LabelAffinity         Label = "cohort affinity v1"           // preference of a unit for an affinity key
	LabelAffinityKey      Label = "cohort affinity key v1"       // MAC that makes an affinity key of a name

	// One-off requests (docs/spec/ohttp.md).
	LabelOneOffKey  Label = "cohort ohttp key v1"  // HKDF info: seed of a KEM key pair
	LabelOneOffKeys Label = "cohort ohttp keys v1" // signed key configuration

	// Formats.
	LabelExtension     Label = "cohort certificate v1"        // private certificate extension
	LabelSoftEvidence  Label = "cohort soft evidence v1"      // evidence of the development TEE
	LabelSoftSeal      Label = "cohort soft seal v1"          // secret sealed by the development TEE
	LabelSoftSecret    Label = "cohort soft secret v1"        // plaintext: secret, reference values
	LabelTPMEvidence   Label = "cohort tpm evidence v1"       // evidence of a TPM
	LabelTPMLaunch     Label = "cohort tpm launch v1"         // one launch: what extends PCR 14
	LabelTPMLaunches   Label = "cohort tpm launches v1"       // launch log: PCR 14 before the first, launches
	LabelTPMSeal       Label = "cohort tpm seal v1"           // secret sealed by a TPM
	LabelTPMSealed     Label = "cohort tpm sealed v1"         // reference values it is sealed to
	LabelTPMKept       Label = "cohort tpm kept key v1"       // attestation key for a later start: private, public, authorization
	LabelAzureEvidence Label = "cohort azure snp evidence v1" // evidence of SEV-SNP on Azure
	LabelOwnSeal       Label = "cohort own seal v1"           // secret sealed by a TEE to one program alone
)

// Labels is the whole table, for the test that no two rows are equal and none
// is a prefix of another's framing.
var Labels = []Label{
	LabelInit, LabelIssue, LabelTrust, LabelTimedTrust, LabelRestore, LabelGroupRoot,
	LabelMeasurement, LabelRegister, LabelArguments, LabelIdentity, LabelRequest, LabelSerial, LabelDraft, LabelHistory, LabelChecked, LabelOwners, LabelBackup,
	LabelGroup, LabelGroupParty, LabelGroupRole, LabelRing, LabelStatementReceipt,
	LabelRootKey, LabelIdentityKey, LabelLeafKey, LabelSignerKey, LabelNonceKey, LabelStoreKey, LabelActivateKey, LabelGroupRootKey,
	LabelNonce, LabelActivate, LabelRow, LabelAdopted, LabelSealedReport, LabelReport, LabelHead, LabelTrustStatement, LabelLeave, LabelRoot, LabelSealedRoot, LabelGroupSecret, LabelOwnSealKey, LabelShare, LabelSealedShare, LabelHiddenShare, LabelRestoreKey, LabelInitKey, LabelInitChallenge,
	LabelRingID, LabelSealKey, LabelCookieKey, LabelCookie, LabelIntroduction,
	LabelSealed, LabelSealedBody, LabelSealedSession, LabelTombstone, LabelTombstoneBound, LabelBusUnit,
	LabelPin, LabelSessionOpen, LabelSessionResponse, LabelSessionKEM, LabelTranscript, LabelSessionID,
	LabelSessionSecret, LabelConfirm, LabelSessionSignature, LabelSessionEvidence, LabelChain,
	LabelRequestKey, LabelResponseKey, LabelCloseKey, LabelReceipt, LabelAffinity, LabelAffinityKey, LabelOneOffKey, LabelOneOffKeys,
	LabelExtension, LabelSoftEvidence, LabelSoftSeal, LabelSoftSecret, LabelOwnSeal,
	LabelTPMEvidence, LabelTPMLaunch, LabelTPMLaunches, LabelTPMSeal, LabelTPMSealed, LabelTPMKept,
	LabelAzureEvidence,
}
