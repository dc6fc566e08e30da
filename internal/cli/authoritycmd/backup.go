package authoritycmd

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/backup"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
)

// historyFile is the name of the history beside the shares.
const historyFile = "history.json"

func authorityBackupCommand(a *frame.App) *cobra.Command {
	var out string
	cmd, f := authorityclient.Command(a, "backup", "Write a backup of the root: one share for each owner, sealed to his key", cobra.NoArgs,
		func(ctx context.Context, c authorityclient.Client, f *authorityclient.Flags, _ []string) error {
			return makeBackup(ctx, a, c, f.Key, out)
		})
	cmd.Flags().StringVar(&f.Key, "ssh-key", "", "SSH key of the owner who asks")
	cmd.Flags().StringVar(&out, "out", "cohort-backup", "directory to make for the shares and the policy history")
	_ = cmd.MarkFlagRequired("ssh-key")
	return cmd
}

// backupView is what `authority backup` prints.
type backupView struct {
	api.Backup
	Directory string   `json:"directory"`
	Quorum    int      `json:"quorum"`
	Shares    []string `json:"shares"`
}

// makeBackup asks for shares, checks that they are what was asked for, writes
// them, and only then reports the backup to the authority.
func makeBackup(ctx context.Context, a *frame.App, c authorityclient.Client, key, out string) error {
	if _, err := os.Lstat(out); err == nil {
		return frame.Usage("--out %s: it exists", out)
	}
	statement := policy.BackupStatement(c.Approved)
	signature, err := sshkey.Sign(a, key, sshsig.ForBackup, statement)
	if err != nil {
		return err
	}
	a.Notef("asking the authority for shares")
	made, err := c.MakeBackup(ctx, api.BackupRequest{Statement: statement, Signature: signature})
	if err != nil {
		return err
	}
	history, err := authorityclient.History(ctx, c)
	if err != nil {
		return err
	}
	files, err := backupFiles(made, c.Approved)
	if err != nil {
		return err
	}
	files[historyFile] = history
	if err := writeDir(out, files); err != nil {
		return err
	}
	a.Notef("wrote %d shares to %s, reporting the backup to the authority", len(made.Shares), out)
	kept, err := c.ConfirmBackup(ctx, api.BackupKept{Share: made.Shares[0]})
	if err != nil {
		return err
	}
	owners := c.Approved.Document().Owners
	v := backupView{Backup: kept, Directory: out, Quorum: owners.Quorum}
	var b strings.Builder
	fmt.Fprintf(&b, "backup %s, %d of %d owners restore it\n", kept.ID, owners.Quorum, len(owners.Keys))
	for _, owner := range owners.Keys {
		v.Shares = append(v.Shares, shareFile(owner.Name))
		fmt.Fprintf(&b, "  %s\n", filepath.Join(out, shareFile(owner.Name)))
	}
	b.WriteString("give each owner his share and " + historyFile + ", and keep them apart\n")
	return a.PrintResult("backup", v, b.String())
}

func shareFile(owner string) string { return owner + ".share" }

// backupFiles are the shares by name. An authority that returns others than one
// for each owner under the policy that was checked is refused.
func backupFiles(made api.BackupShares, approved policy.Approved) (map[string][]byte, error) {
	owners := approved.Document().Owners
	if len(made.Shares) != len(owners.Keys) {
		return nil, wire.Refuse(wire.BadShare, "backup: shares", len(made.Shares), len(owners.Keys))
	}
	files := map[string][]byte{}
	for i, b := range made.Shares {
		s, err := backup.Parse(b)
		if err == nil {
			err = s.CheckPolicy(approved)
		}
		if err != nil {
			return nil, err
		}
		if s.Number != i+1 {
			return nil, wire.Refuse(wire.BadShare, "backup: number of the share of "+s.Owner, s.Number, i+1)
		}
		files[shareFile(s.Owner)] = b
	}
	return files, nil
}

// writeDir makes a directory with all files or none: it is given its name when
// everything is on disk.
func writeDir(path string, files map[string][]byte) error {
	parent := filepath.Dir(filepath.Clean(path))
	temp, err := os.MkdirTemp(parent, ".cohort-backup-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp) // gone already when all went well
	for name, content := range files {
		if err := frame.ReplaceFile(filepath.Join(temp, name), content); err != nil {
			return err
		}
	}
	if err := errors.Join(syncDir(temp), os.Rename(temp, path)); err != nil {
		return err
	}
	return syncDir(parent)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// restoreFlags are the flags of `authority restore` and `authority unlock`.
type restoreFlags struct {
	tee        frame.TEEFlags
	collateral frame.CollateralFlags
	store      string
	request    string
	history    string
	genesis    string
	key        string
	out        string
}

func (f *restoreFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.request, "request", "", "file of the restore request")
	cmd.Flags().StringVar(&f.history, "history", historyFile, "file of the policy history, as the backup wrote it or newer")
	cmd.Flags().StringVar(&f.genesis, "genesis", "", "digest of the first policy, 64 hexadecimal digits")
	f.collateral.Register(cmd)
}

// readRequest reads request and history, and approves the history.
func (f *restoreFlags) readRequest() (request backup.Request, entries []api.HistoryEntry, genesis wire.Digest, err error) {
	if genesis, err = wire.ParseDigest(f.genesis); err != nil {
		return request, nil, genesis, frame.Usage("--genesis: %w", err)
	}
	b, err := frame.ReadFile(f.request, wire.MaxRequest)
	if err == nil {
		request, err = backup.ParseRequest(b)
	}
	if err != nil {
		return request, nil, genesis, fmt.Errorf("reading --request: %w", err)
	}
	if b, err = frame.ReadFile(f.history, 4*wire.MaxResponse); err != nil {
		return request, nil, genesis, fmt.Errorf("reading --history: %w", err)
	}
	file := struct {
		Schema string `json:"schema"`
		api.History
	}{}
	if err := api.Decode(b, &file); err != nil {
		return request, nil, genesis, fmt.Errorf("reading --history: %w", err)
	}
	if file.Schema != "cohort/history/v1" || file.From != 0 {
		return request, nil, genesis, wire.Refuse(wire.Malformed, "history: schema", file.Schema, "cohort/history/v1, from its beginning")
	}
	return request, file.Entries, genesis, nil
}

func readShare(path string) (backup.Share, error) {
	b, err := frame.ReadFile(path, wire.MaxShare)
	if err != nil {
		return backup.Share{}, err
	}
	s, err := backup.Parse(b)
	if err != nil {
		return s, fmt.Errorf("reading %s: %w", path, err)
	}
	return s, nil
}

// ageIdentity opens what shares are sealed to: an age identity file, or a
// private SSH key, whose passphrase is asked for on the terminal.
func ageIdentity(path string) (age.Identity, error) {
	b, err := frame.ReadFile(path, sshkey.MaxKeyFile)
	if err != nil {
		return nil, fmt.Errorf("reading key: %w", err)
	}
	defer clear(b)
	if ids, err := age.ParseIdentities(strings.NewReader(string(b))); err == nil && len(ids) == 1 {
		return ids[0], nil
	}
	raw, err := ssh.ParseRawPrivateKey(b)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		raw, err = unlockRaw(path, b)
	}
	if err != nil {
		return nil, frame.Usage("reading key %s: %w", path, err)
	}
	key, ok := raw.(*ed25519.PrivateKey)
	if !ok {
		return nil, &frame.Fault{Code: frame.CodeUsage, Cause: fmt.Errorf("key %s: not an ssh-ed25519 key", path), Hint: "other SSH keys open nothing: give the age identity whose recipient the policy names"}
	}
	return agessh.NewEd25519Identity(*key)
}

// unlockRaw asks for the passphrase of a private key on the terminal.
func unlockRaw(path string, key []byte) (any, error) {
	passphrase, err := sshkey.AskPassphrase(path)
	if err != nil {
		return nil, err
	}
	defer clear(passphrase)
	return ssh.ParseRawPrivateKeyWithPassphrase(key, passphrase)
}
