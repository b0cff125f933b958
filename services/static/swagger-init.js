// In a file of its own because the page's Content-Security-Policy allows no inline script.
// validatorUrl and queryConfigEnabled are off so that the page never asks another host for anything.
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  queryConfigEnabled: false,
  tryItOutEnabled: true,
  validatorUrl: null,
});
