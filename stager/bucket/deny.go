package bucket

import "net/http"

// Deny takes permissions, such as storage.objects.delete, from all clients: those of objects. Without any it
// gives back all. As in the service, whoever overwrites an object needs the permission to delete it, and a
// compose or a copy needs those to create and to get.
func (s *Server) Deny(permissions ...string) {
	denied := make(map[string]bool, len(permissions))
	for _, p := range permissions {
		denied[p] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied = denied
}

// permit reports, in the service's words, the first permission that is lacking.
func (s *Server) permit(rt route) error {
	needs := []string{rt.op}
	switch rt.op {
	case "storage.objects.compose", "storage.objects.rewrite", "storage.objects.copy":
		needs = []string{"storage.objects.create", "storage.objects.get"}
	case "storage.objects.move":
		needs = []string{"storage.objects.create", "storage.objects.get", "storage.objects.delete"}
	case "storage.objects.insert":
		needs = []string{"storage.objects.create"}
	case "storage.objects.patch":
		needs = []string{"storage.objects.update"}
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, p := range needs {
		if s.denied[p] {
			return errDenied(p)
		}
	}
	return nil
}

func errDenied(permission string) error {
	return &apiError{
		status: http.StatusForbidden, reason: "forbidden", code: "AccessDenied",
		message: "stager@project.iam.gserviceaccount.com does not have " + permission + " access to the Google Cloud Storage object. Permission '" + permission + "' denied on resource (or it may not exist).",
	}
}
