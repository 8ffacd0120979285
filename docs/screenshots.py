"""Take the screenshots of the documentation: screenshots.py AIRFLOW_URL FOLDER [TASK [EXECUTION]].

It needs selenium, pillow, Chromium and a running Airflow 3. It opens the TechFlow page (light, dark, narrow and in
Airflow's frame), the form of a connection, the page of a task, given as a path such as `/dags/…/tasks/…/details`, and
the sandbox's page of an execution, given as a URL. Airflow must not ask for a login, as with
`simple_auth_manager_all_admins`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import urljoin

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

WIDE, NARROW, HEIGHT, MAX_HEIGHT = 1000, 400, 900, 1500
TIMEOUT_SECONDS = 120


class Browser:
    """A headless Chromium.

    :param url: Airflow's URL
    :param folder: where to write the screenshots
    """

    def __init__(self, url: str, folder: Path) -> None:
        options = webdriver.ChromeOptions()
        for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
            options.add_argument(flag)
        self.driver = webdriver.Chrome(options=options)
        self.driver.set_page_load_timeout(TIMEOUT_SECONDS)
        self._url = url.rstrip("/")
        self._folder = folder

    def resize(self, width: int, scheme: str, height: int = HEIGHT) -> None:
        """Set the window's size in pixels and the colour scheme, `light` or `dark`."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def open(self, path: str) -> None:
        """Open one of Airflow's pages, or another URL."""
        self.driver.get(urljoin(self._url, path))

    def find(self, xpath: str) -> WebElement:
        """Return the first visible element, waiting for it if necessary."""

        def visible(driver: webdriver.Chrome) -> WebElement | None:
            found = driver.find_elements(By.XPATH, xpath)
            return next((each for each in found if each.is_displayed()), None)

        element: WebElement = WebDriverWait(self.driver, TIMEOUT_SECONDS).until(visible)
        return element

    def save(self, name: str) -> None:
        """Write a small screenshot of the window."""
        path = self._folder / f"{name}.png"
        self.driver.save_screenshot(str(path))
        picture = Image.open(path).convert("RGB")
        smaller = picture.resize((picture.width * 7 // 10, picture.height * 7 // 10))
        # This method preserves colours of few pixels, such as a bar's.
        smaller.quantize(64, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)


def page(browser: Browser) -> None:
    """Take screenshots of the TechFlow page."""
    for name, width, scheme in (("light", WIDE, "light"), ("dark", WIDE, "dark"), ("narrow", NARROW, "light")):
        browser.resize(width, scheme)
        browser.open("/techflow-page/")
        browser.find("//h2[text()='Executions']")
        whole: int = browser.driver.execute_script("return document.documentElement.scrollHeight")
        browser.resize(width, scheme, min(whole, MAX_HEIGHT))
        browser.save(f"page-{name}")
    for scheme in ("light", "dark"):
        browser.resize(WIDE, scheme)
        browser.open("/plugin/techflow")
        browser.driver.switch_to.frame(browser.find("//iframe"))
        browser.find("//h2[text()='Executions']")
        browser.driver.switch_to.default_content()
        browser.save(f"page-frame-{scheme}")


def form(browser: Browser) -> None:
    """Take a screenshot of the form of a connection of the type `techflow`."""
    browser.resize(WIDE, "light")
    browser.open("/connections")
    browser.find("//button[contains(., 'Add Connection')]").click()
    browser.find("//input[@name='connection_id']").send_keys("techflow_default")
    browser.find("//input[@role='combobox']").send_keys("TechFlow")
    browser.find("//*[@role='option'][contains(., 'TechFlow')]").click()
    browser.find("//input[@name='password']").send_keys("YOUR_API_KEY")
    browser.save("connection-form")


def link(browser: Browser, task: str) -> None:
    """Take a screenshot of a task's page with its link to TechFlow."""
    browser.resize(WIDE, "light")
    browser.open(task)
    browser.find("//a[contains(., 'Open in TechFlow')]")
    browser.save("link")


def sandbox(browser: Browser, execution: str) -> None:
    """Take screenshots of the sandbox's page of an execution."""
    for scheme in ("light", "dark"):
        browser.resize(WIDE * 7 // 10, scheme, HEIGHT // 2)
        browser.open(execution)
        browser.save(f"sandbox-{scheme}")


def main(url: str, folder: str, task: str | None = None, execution: str | None = None) -> None:
    """Take all screenshots."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    browser = Browser(url, Path(folder))
    try:
        page(browser)
        form(browser)
        if task:
            link(browser, task)
        if execution:
            sandbox(browser, execution)
    finally:
        browser.driver.quit()


if __name__ == "__main__":
    main(*sys.argv[1:])
