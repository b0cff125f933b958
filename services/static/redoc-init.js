// In a file of its own because the page's Content-Security-Policy allows no inline script.
Redoc.init("/openapi.json", { disableSearch: false, hideDownloadButton: false }, document.getElementById("redoc"));
