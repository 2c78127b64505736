//go:build linux

package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/julofinance/grace/v3/bench/server"
	"github.com/julofinance/grace/v3/internal/load"
)

// lossKinds are the clients that each server has while it is upgraded again and again,
// through a network that takes 2 ms each way.
var lossKinds = []struct {
	kind    load.Kind
	name    string
	clients int
}{
	{load.KeepAlive, "keep-alive POSTs", 32},
	{load.Slow, "requests of 300 ms", 4},
	{load.Stream, "upgraded streams of 1.5 s", 4},
	{load.Connect, "a connection per request", 4},
	{load.TLS, "TLS keep-alive POSTs", 32},
	{load.HTTP2, "HTTP/2 POSTs", 8},
}

// lost counts the requests that are lost while the servers are upgraded, which take
// turns; all the while all clients of both are at work.
func (b *benchmark) lost(turns int) (map[string]load.Report, error) {
	cert, trust, err := b.certificate()
	if err != nil {
		return nil, err
	}
	clients := map[load.Kind]int{}
	for _, k := range lossKinds {
		clients[k.kind] = k.clients
	}
	processes, runs := map[string]*process{}, map[string]*load.Run{}
	for _, kind := range kinds[1:] {
		p, err := b.start(kind, server.LoadVariable+"="+cert)
		if err != nil {
			return nil, err
		}
		defer p.end()
		r, err := load.Start(b.ctx, load.Config{
			Addr: p.addr, TLSAddr: p.tlsAddr, Trust: trust,
			Kinds: clients, Delay: 2 * time.Millisecond, Limit: time.Minute,
		})
		if err != nil {
			return nil, err
		}
		defer r.Stop()
		processes[kind], runs[kind] = p, r
	}
	for range turns {
		for _, kind := range kinds[1:] {
			if err := b.moreAnswers(runs[kind]); err != nil {
				return nil, fmt.Errorf("%s: %w", kind, err)
			}
			p := processes[kind]
			if err := syscall.Kill(p.pid, syscall.SIGUSR2); err != nil {
				return nil, err
			}
			if _, err := p.serving(b.ctx); err != nil {
				return nil, err
			}
			if err := p.alone(b.ctx); err != nil {
				return nil, err
			}
		}
	}
	reports := map[string]load.Report{}
	for kind, r := range runs {
		if err := b.moreAnswers(r); err != nil {
			return nil, fmt.Errorf("%s: %w", kind, err)
		}
		reports[kind] = r.Stop()
	}
	return reports, nil
}

// moreAnswers waits until each sort of clients has more answers, or has lost more.
func (b *benchmark) moreAnswers(r *load.Run) error {
	before := r.Snapshot()
	return until(b.ctx, time.Minute, "an answer for each sort of clients", func() (bool, error) {
		now := r.Snapshot().Kinds
		for k, n := range before.Kinds {
			if now[k].Answered+now[k].Losses() < n.Answered+n.Losses()+n.Clients {
				return false, nil
			}
		}
		return true, nil
	})
}

func (b *benchmark) lostRows(t *table, s size) error {
	reports, err := b.lost(s.lossTurns)
	if err != nil {
		return err
	}
	g, f := reports[ours], reports[tableflip]
	per := func(n int) float64 { return float64(n) / float64(s.lossTurns) }
	t.head(fmt.Sprintf("lost per upgrade, %d upgrades", s.lossTurns))
	for _, k := range lossKinds {
		t.row(k.name, "%.1f", none, per(g.Kinds[k.kind].Losses()), per(f.Kinds[k.kind].Losses()))
	}
	t.row("all", "%.1f", none, per(g.Lost()), per(f.Lost()))
	t.row("answered, in all", "%.0f", none, float64(g.Total().Answered), float64(f.Total().Answered))
	for _, l := range g.Losses {
		fmt.Fprintf(t.w, "grace has lost: %v\n", l)
	}
	return nil
}

// certificate writes one for example.com with its key to a file.
func (b *benchmark) certificate() (file string, trust *tls.Config, err error) {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	cert := s.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return "", nil, err
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	file = filepath.Join(b.dir, "certificate")
	return file, &tls.Config{RootCAs: roots, ServerName: "example.com"}, os.WriteFile(file, text, 0o600)
}
