package grace_test

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"sync"

	"github.com/julofinance/grace/v3"
)

// Hits per client, which the new process goes on counting. A version that counts otherwise
// begins anew.
func ExampleCarryState() {
	const version = 1
	var mu sync.Mutex
	hits := map[string]int{}

	save := func(_ context.Context, w io.Writer) error {
		mu.Lock()
		now := maps.Clone(hits) // requests go on meanwhile
		mu.Unlock()
		e := gob.NewEncoder(w)
		return errors.Join(e.Encode(version), e.Encode(now))
	}
	restore := func(_ context.Context, r io.Reader) error {
		d := gob.NewDecoder(r)
		saved, then := 0, map[string]int{}
		if err := d.Decode(&saved); err != nil || saved != version {
			log.Print("begins without the hits of the version before: ", saved, err)
			return nil
		}
		if err := d.Decode(&then); err != nil {
			return err // the old process serves on
		}
		mu.Lock()
		defer mu.Unlock()
		hits = then
		return nil
	}

	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		hits[r.FormValue("client")]++
		fmt.Fprintln(w, hits[r.FormValue("client")])
	})
	if err := grace.Serve(":9000", nil, grace.CarryState(save, restore)); err != nil {
		log.Fatal(err)
	}
}
