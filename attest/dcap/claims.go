package dcap

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/pki"
)

// newClaims are what the quote, its certificate and the collateral state, once they are
// believed.
func newClaims(q quote, of attest.Platform, p *platform, v verdict) attest.Claims {
	c := q.unverifiedClaims(of)
	c.Chip, c.Issued = hex.EncodeToString(p.pck.ppid), pki.NewestIssue(p.times...)
	maps.Copy(c.Details, details(p, v))
	return c
}

// unverifiedClaims are the claims of the quote alone.
func (q quote) unverifiedClaims(of attest.Platform) attest.Claims {
	c := attest.Claims{Details: map[string]any{"quote_version": q.version, "qe_svn": q.qe.securityVersion()}}
	c.Measurement.Platform = of
	body := bytes.Clone(q.body) // claims outlive the evidence they were read from
	if of == attest.TDX {
		guestClaims(&c, guest(body))
	} else {
		enclaveClaims(&c, enclave(body))
	}
	return c
}

func guestClaims(c *attest.Claims, g guest) {
	c.ReportData, c.Debug = g.reportData(), g.debug()
	c.Measurement.Registers = []attest.Register{
		{Name: "mrtd", Value: g.measurementTD()},
		{Name: "mrconfigid", Value: g.mrConfigID()},
		{Name: "rtmr0", Value: g.runtimeMeasurement(0)},
		{Name: "rtmr1", Value: g.runtimeMeasurement(1)},
		{Name: "rtmr2", Value: g.runtimeMeasurement(2)},
		{Name: "rtmr3", Value: g.runtimeMeasurement(3)},
	}
	maps.Copy(c.Details, map[string]any{
		"td_attributes":     hex.EncodeToString(g.attributes()),
		"td_attribute_bits": attest.TDAttributes.SetNames(binary.LittleEndian.Uint64(g.attributes())),
		"xfam":              hex.EncodeToString(g.extendedFeatures()),
		"xfam_bits":         attest.XFAM.SetNames(binary.LittleEndian.Uint64(g.extendedFeatures())),
		"mrseam":            hex.EncodeToString(g.mrSEAM()),
		"mrsignerseam":      hex.EncodeToString(g.mrSignerSEAM()),
		"seam_attributes":   hex.EncodeToString(g.seamAttributes()),
		"mrowner":           hex.EncodeToString(g.mrOwner()),
		"mrownerconfig":     hex.EncodeToString(g.mrOwnerConfig()),
		"mrservicetd":       hex.EncodeToString(g.mrServiceTD()),
		"tee_tcb_svn":       hex.EncodeToString(g.tcbSVN()),
		"tee_tcb_svn_2":     hex.EncodeToString(g.tcbSVN2()),
	})
}

func enclaveClaims(c *attest.Claims, e enclave) {
	c.ReportData, c.Debug = e.reportData(), e.debug()
	c.Measurement.Registers = []attest.Register{
		{Name: "mrenclave", Value: e.mrEnclave()},
		{Name: "mrsigner", Value: e.mrSigner()},
		{Name: "isvprodid", Value: binary.BigEndian.AppendUint16(nil, e.productID())},
		{Name: "configid", Value: e.configID()},
	}
	maps.Copy(c.Details, map[string]any{
		"attributes":      hex.EncodeToString(e.attributes()),
		"misc_select":     hex.EncodeToString(e.miscSelect()),
		"cpu_svn":         hex.EncodeToString(e.cpuSVN()),
		"isv_prod_id":     e.productID(),
		"isv_svn":         e.securityVersion(),
		"isv_ext_prod_id": hex.EncodeToString(e.extProductID()),
		"isv_family_id":   hex.EncodeToString(e.familyID()),
		"config_svn":      e.configSVN(),
	})
}

// details are what certificate and collateral state about the platform.
func details(p *platform, v verdict) map[string]any {
	statuses := map[string]any{
		"overall": v.overall.String(), "platform": v.platform.String(), "qe": v.qe.String(), "qe_id": p.qe.ID,
	}
	if v.module != 0 {
		statuses["module"] = v.module.String()
	}
	all := map[string]any{
		"fmspc":                      hex.EncodeToString(p.pck.fmspc),
		"pce_id":                     hex.EncodeToString(p.pck.pceID),
		"pce_svn":                    p.pck.pceSVN,
		"tcb_evaluation_data_number": p.tcb.Evaluation,
		"tcb_status":                 statuses,
		"advisories":                 append([]string{}, v.advisories...),
	}
	if !v.date.IsZero() {
		all["tcb_date"] = v.date.UTC().Format(time.RFC3339)
	}
	if v.current != 0 {
		all["current_tcb_status"] = v.current.String()
	}
	return all
}
