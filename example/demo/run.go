//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/julofinance/grace/v3/internal/load"
)

// A show is one run of the demo.
type show struct {
	cfg     config
	service *service
	load    *load.Run
	colour  bool
	all     []upgrade
	// of the load, when the last line was printed
	answered, lost int
}

// run shows everything and says how much was lost.
func run(ctx context.Context, cfg config, kinds map[load.Kind]int) (lost int, err error) {
	adoptOrphans()
	s := &show{cfg: cfg, colour: isTerminal(os.Stdout)}
	if s.service, err = startService(cfg); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.service.end()) }()
	s.load, err = load.Start(ctx, load.Config{
		Addr: s.service.addr, TLSAddr: s.service.tlsAddr, Trust: s.service.trust,
		Kinds: kinds, Delay: cfg.delay, Pause: cfg.think,
	})
	if err != nil {
		return 0, err
	}
	s.head(kinds)
	err = s.upgrades(ctx)
	report := s.load.Stop()
	s.summary(report)
	if ctx.Err() != nil {
		err = errors.Join(err, errors.New("interrupted"))
	}
	return report.Lost() - s.lostBroken(), err
}

func (s *show) upgrades(ctx context.Context) error {
	for n := 1; n <= s.cfg.upgrades; n++ {
		if !pause(ctx, s.cfg.pause) {
			return nil
		}
		broken := s.cfg.breakNth > 0 && n%s.cfg.breakNth == 0
		if broken {
			if err := s.service.sabotage(s.cfg.broken); err != nil {
				return err
			}
		}
		up, err := s.service.replace()
		if err != nil {
			return fmt.Errorf("upgrade %d: %w", n, err)
		}
		// What is on its way to the clients, which report losses too.
		if !pause(ctx, s.cfg.pause) {
			return nil
		}
		up.broken = broken
		s.line(n, up)
		if up.failed != "" && !broken {
			return fmt.Errorf("upgrade %d failed: %s", n, up.failed)
		}
		if up.failed == "" && broken {
			return fmt.Errorf("upgrade %d: a broken version has taken over", n)
		}
	}
	return nil
}

// pause waits; false if the demo is to end.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *show) head(kinds map[load.Kind]int) {
	clients := 0
	for _, n := range kinds {
		clients += n
	}
	verb := map[string]string{"usr2": "kill -USR2 $(cat " + s.service.path("pid") + ")", "restart": "stop, and start again", "kill": "kill -9, and start again"}
	pid, _ := s.service.pid()
	fmt.Printf("Server %d on %s, TLS on %s, %d clients of %d kinds, %v away; %d times: %s\n\n",
		pid, s.service.addr, s.service.tlsAddr, clients, len(kinds), s.cfg.delay, s.cfg.upgrades, verb[s.cfg.how])
	fmt.Printf("%4s  %17s  %10s  %7s %8s %6s %4s %9s  %9s %5s\n",
		"", "old -> new", "hand-over", "moved", "finished", "waited", "cut", "drained", "requests", "lost")
}

// line prints what one upgrade was like, with the requests since the last one.
func (s *show) line(n int, up upgrade) {
	now := s.load.Snapshot().Total()
	up.answered, up.lost = now.Answered-s.answered, now.Losses()-s.lost
	s.answered, s.lost = now.Answered, now.Losses()
	s.all = append(s.all, up)

	fmt.Printf("%4d  %7d -> %-6s  ", n, up.old, pidOrNone(up.new))
	if up.failed != "" {
		fmt.Printf("%s", s.paint(yellow, fmt.Sprintf("%-50s", "rolled back after "+up.handOver.Round(time.Millisecond).String())))
	} else {
		fmt.Printf("%10s  %7d %8d %6d %4d %9s", ms(up.handOver), up.moved, up.finished, up.waited, up.cut, ms(up.drained))
	}
	colour := green
	if up.lost > 0 {
		colour = red
	}
	fmt.Printf("  %9d %s\n", up.answered, s.paint(colour, fmt.Sprintf("%5d", up.lost)))
	if up.failed != "" {
		fmt.Printf("      %s\n", up.failed)
	}
}

// lostBroken is what was lost in upgrades to versions broken on purpose.
func (s *show) lostBroken() (n int) {
	for _, up := range s.all {
		if up.broken {
			n += up.lost
		}
	}
	return n
}

func (s *show) summary(report load.Report) {
	fmt.Printf("\n%s\n", report)
	var took []time.Duration
	var moved, finished, waited, cut, back int
	for _, up := range s.all {
		moved, finished, waited, cut = moved+up.moved, finished+up.finished, waited+up.waited, cut+up.cut
		if up.failed != "" {
			back++
			continue
		}
		took = append(took, up.handOver)
	}
	fmt.Printf("upgrades: %d, rolled back: %d", len(took), back)
	if len(took) > 0 {
		slices.Sort(took)
		fmt.Printf("; hand-over p50 %s, max %s", ms(took[(len(took)-1)/2]), ms(took[len(took)-1]))
	}
	fmt.Printf("\nconnections: %d moved, %d finished, %d waited for, %d cut off\n", moved, finished, waited, cut)
	if n := s.lostBroken(); n > 0 {
		fmt.Printf("lost with broken versions that had accepted them: %d\n", n)
	}
	colour := green
	lost := report.Lost() - s.lostBroken()
	if lost > 0 {
		colour = red
	}
	fmt.Println(s.paint(colour, fmt.Sprintf("lost: %d of %d requests", lost, report.Total().Answered+report.Lost())))
}

func pidOrNone(pid int) string {
	if pid == 0 {
		return "none"
	}
	return fmt.Sprint(pid)
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/1e6) }

const (
	red    = "31"
	green  = "32"
	yellow = "33"
)

func (s *show) paint(colour, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// isTerminal reports whether f may be written to in colour.
func isTerminal(f *os.File) bool {
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == "" &&
		!strings.HasPrefix(os.Getenv("TERM"), "dumb") && os.Getenv("TERM") != ""
}
