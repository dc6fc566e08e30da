package sshkey

import (
	"fmt"

	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// SignPolicy signs a policy that is not the first. A hostile authority could show a first
// policy as a proposal; that is signed by `cohort policy sign --init`, with the evidence of its root.
func SignPolicy(a *frame.App, key string, raw []byte) (string, error) {
	doc, err := policyfile.Parse(raw)
	if err != nil {
		return "", fmt.Errorf("checking the policy to sign: %w", err)
	}
	if doc.Sequence == 1 {
		return "", wire.Refuse(wire.EvidenceMissing, "sign: the first policy", "no evidence of its authority root", "`cohort policy sign --init`")
	}
	return Sign(a, key, sshsig.ForPolicy, raw)
}

// Sign signs one statement with the key that a path names.
func Sign(a *frame.App, key string, ns sshsig.Namespace, message []byte) (string, error) {
	signer, closeAgent, err := Signer(a, key)
	if err != nil {
		return "", err
	}
	defer closeAgent()
	return sshsig.Sign(signer, ns, message)
}
