package serve

import (
	"net/http"
	"reflect"
	"testing"
)

// Every field of http.Server that can be set is carried over, those of later Go
// versions too.
func TestCloneKeepsEveryField(t *testing.T) {
	srv := &http.Server{}
	v := reflect.ValueOf(srv).Elem()
	names := 0
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() {
			continue
		}
		names++
		switch value := v.Field(i); value.Kind() {
		case reflect.String:
			value.SetString("x")
		case reflect.Bool:
			value.SetBool(true)
		case reflect.Int, reflect.Int64:
			value.SetInt(7)
		case reflect.Pointer:
			value.Set(reflect.New(value.Type().Elem()))
		case reflect.Map:
			value.Set(reflect.MakeMap(value.Type()))
		case reflect.Func:
			value.Set(reflect.MakeFunc(value.Type(), nil))
		case reflect.Interface:
			value.Set(reflect.ValueOf(http.NotFoundHandler()))
		default:
			t.Fatalf("%s is a %v: this test has no value of that kind", f.Name, value.Kind())
		}
	}
	if names < 16 {
		t.Fatalf("an http.Server has %d fields that can be set, want 16 at least", names)
	}
	srv.SetKeepAlivesEnabled(false)
	c := clone(srv)
	for i := range v.NumField() {
		if f := v.Type().Field(i); f.IsExported() {
			got := reflect.ValueOf(c).Elem().Field(i)
			same := got.IsValid() && !got.IsZero()
			switch got.Kind() {
			case reflect.Func, reflect.Map:
				same = got.Pointer() == v.Field(i).Pointer()
			case reflect.Interface:
				same = same && got.Elem().Pointer() == v.Field(i).Elem().Pointer()
			default:
				same = got.Equal(v.Field(i))
			}
			if !same {
				t.Errorf("%s is lost", f.Name)
			}
		}
	}
	if !keepAlivesDisabled(c) {
		t.Error("SetKeepAlivesEnabled(false) is lost")
	}
	if keepAlivesDisabled(clone(&http.Server{})) {
		t.Error("a copy of a server with keep-alives has none")
	}
}
