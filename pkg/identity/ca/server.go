package ca

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

// serverLife is short enough that a lost key heals within a season, and long
// enough that a service restarted each quarter never serves an expired one.
const serverLife = 180 * 24 * time.Hour

// RenewServer makes the listeners' certificate if there is none, and issues it
// anew over the same key when a third of its life is left, or the names or the
// server CA have changed; without names it keeps those it has. A certificate
// that is not from one of this directory's server CAs is the operator's own and
// stays untouched. Call it at start and daily.
func RenewServer(dir string, names []string, now time.Time) error {
	certPath, keyPath := filepath.Join(dir, ServerCertFile), filepath.Join(dir, ServerKeyFile)
	ca, bundle, err := openCA(filepath.Join(dir, serverCAKeyFile), filepath.Join(dir, ServerCAFile))
	if err != nil {
		return err
	}
	names = slices.Sorted(slices.Values(names))
	names = slices.Compact(names)
	if exists(certPath) {
		current, err := readCertificates(certPath)
		if err != nil {
			return err
		}
		own := slices.ContainsFunc(bundle, func(c *x509.Certificate) bool { return current[0].CheckSignatureFrom(c) == nil })
		if len(names) == 0 {
			names = serverNames(current[0])
		}
		fresh := current[0].CheckSignatureFrom(ca.cert) == nil && now.Add(serverLife/3).Before(current[0].NotAfter)
		if !own || fresh && slices.Equal(serverNames(current[0]), names) {
			return nil
		}
	}
	if len(names) == 0 {
		return errors.New("server certificate: at least one host name or IP is needed")
	}
	if err := makeKey(keyPath, newECKey); err != nil {
		return err
	}
	key, err := readKey(keyPath)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "pganalytics server"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if err := checkServerName(name); err != nil {
			return err
		}
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	cert, err := ca.sign(template, key.Public(), serverLife, now)
	if err != nil {
		return fmt.Errorf("issue server certificate: %w", err)
	}
	return writeFile(certPath, EncodePEM(cert), 0o644, replace)
}

// serverNames returns a certificate's names in the order of RenewServer.
func serverNames(cert *x509.Certificate) []string {
	names := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	slices.Sort(names)
	return names
}

var hostForm = regexp.MustCompile(`^(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*$`)

// checkServerName wants IPs in their canonical spelling, so that a certificate's names
// compare equal to the configured ones.
func checkServerName(name string) error {
	if ip := net.ParseIP(name); ip != nil {
		if ip.String() != name {
			return fmt.Errorf("server name %q: write it as %s", name, ip)
		}
		return nil
	}
	if len(name) > 253 || !hostForm.MatchString(name) {
		return fmt.Errorf("server name %q: neither a host name nor an IP address", name)
	}
	return nil
}
