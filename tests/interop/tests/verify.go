// Verifies the certificates that request.json names and prints what it found as JSON.
package main

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"time"
)

type request struct {
	File      string   `json:"file"`
	Authority string   `json:"authority"`
	Hosts     []string `json:"hosts"`
}

type answer struct {
	Client            string     `json:"client"`
	Server            string     `json:"server"`
	Hosts             string     `json:"hosts"`
	OtherHost         string     `json:"other_host"`
	OtherAuthority    string     `json:"other_authority"`
	UnhandledCritical int        `json:"unhandled_critical"`
	Extension         *extension `json:"extension"`
}

type extension struct {
	Version          int      `json:"version"`
	Kind             int      `json:"kind"`
	Cluster          string   `json:"cluster"`
	Principal        string   `json:"principal"`
	LoginID          string   `json:"login_id"`
	AuthTime         int64    `json:"auth_time"`
	LoginDeadline    int64    `json:"login_deadline"`
	Generation       int64    `json:"generation"`
	Connector        string   `json:"connector"`
	Issuer           string   `json:"issuer"`
	Subject          string   `json:"subject"`
	LoginMethod      string   `json:"login_method"`
	Groups           []string `json:"groups"`
	GroupsVocabulary int64    `json:"groups_vocabulary"`
	Name             string   `json:"name"`
}

// The schema, as encoding/asn1 wants it told.
type provider struct {
	Connector string `asn1:"utf8"`
	Issuer    string `asn1:"utf8"`
	Subject   string `asn1:"utf8"`
	Acr       string `asn1:"utf8,optional"`
}

type identity struct {
	Version          int
	Kind             asn1.Enumerated
	Cluster          string    `asn1:"utf8"`
	Principal        string    `asn1:"utf8"`
	LoginID          []byte    `asn1:"optional"`
	AuthTime         time.Time `asn1:"generalized,explicit,optional,tag:0"`
	LoginDeadline    time.Time `asn1:"generalized,explicit,optional,tag:1"`
	Generation       int64     `asn1:"explicit,optional,tag:2"`
	Provider         provider  `asn1:"explicit,optional,tag:3"`
	LoginMethod      string    `asn1:"utf8,explicit,optional,tag:4"`
	MfaTime          time.Time `asn1:"generalized,explicit,optional,tag:5"`
	DeviceID         string    `asn1:"utf8,explicit,optional,tag:6"`
	Groups           []string  `asn1:"utf8,explicit,optional,tag:7"`
	GroupsVocabulary int64     `asn1:"explicit,optional,tag:8"`
	GroupsAsOf       time.Time `asn1:"generalized,explicit,optional,tag:9"`
	Name             string    `asn1:"utf8,explicit,optional,tag:10"`
}

var identityOID = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 1, 1}

func main() {
	var requests []request
	check(json.Unmarshal(read("request.json"), &requests))
	answers := make([]answer, 0, len(requests))
	for _, request := range requests {
		answers = append(answers, judge(request))
	}
	check(json.NewEncoder(os.Stdout).Encode(answers))
}

func judge(request request) answer {
	leaf := certificate(request.File)
	roots, authority := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(certificate("root.pem"))
	authority.AddCert(certificate(request.Authority))
	verify := func(intermediates *x509.CertPool, usage x509.ExtKeyUsage) string {
		_, err := leaf.Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage},
		})
		return text(err)
	}
	other := x509.NewCertPool()
	for _, file := range []string{"ca-system.pem", "ca-user.pem", "ca-workload.pem"} {
		if file != request.Authority {
			other.AddCert(certificate(file))
		}
	}
	result := answer{
		Client:            verify(authority, x509.ExtKeyUsageClientAuth),
		Server:            verify(authority, x509.ExtKeyUsageServerAuth),
		OtherHost:         text(leaf.VerifyHostname("other.iap.example.com")),
		OtherAuthority:    verify(other, x509.ExtKeyUsageAny),
		UnhandledCritical: len(leaf.UnhandledCriticalExtensions),
	}
	for _, host := range request.Hosts {
		result.Hosts += text(leaf.VerifyHostname(host))
	}
	for _, found := range leaf.Extensions {
		if found.Id.Equal(identityOID) {
			result.Extension = readIdentity(found.Value)
		}
	}
	return result
}

// readIdentity also insists that the extension is a single element.
func readIdentity(der []byte) *extension {
	var value identity
	rest, err := asn1.Unmarshal(der, &value)
	check(err)
	if len(rest) != 0 {
		panic("trailing data in the identity extension")
	}
	unix := func(t time.Time) int64 {
		if t.IsZero() {
			return 0
		}
		return t.Unix()
	}
	return &extension{
		Version: value.Version, Kind: int(value.Kind), Cluster: value.Cluster, Principal: value.Principal,
		LoginID: hex.EncodeToString(value.LoginID), AuthTime: unix(value.AuthTime),
		LoginDeadline: unix(value.LoginDeadline), Generation: value.Generation,
		Connector: value.Provider.Connector, Issuer: value.Provider.Issuer, Subject: value.Provider.Subject,
		LoginMethod: value.LoginMethod, Groups: value.Groups, GroupsVocabulary: value.GroupsVocabulary,
		Name: value.Name,
	}
}

func certificate(file string) *x509.Certificate {
	block, _ := pem.Decode(read(file))
	certificate, err := x509.ParseCertificate(block.Bytes)
	check(err)
	return certificate
}

func read(file string) []byte {
	content, err := os.ReadFile(file)
	check(err)
	return content
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
